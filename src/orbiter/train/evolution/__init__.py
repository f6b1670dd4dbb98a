"""Improve the words: evolution of prompts, parameters, code and settings."""

from orbiter.train.evolution.config import EvolutionConfig, EvolutionPhase, StopReason
from orbiter.train.evolution.event import Event
from orbiter.train.evolution.pipeline import EvolutionPipeline
from orbiter.train.evolution.result import EpochRecord, EvolutionResult
from orbiter.train.evolution.strategy import Context, EvolutionStrategy, Score

__all__ = [
    "Context",
    "EpochRecord",
    "Event",
    "EvolutionConfig",
    "EvolutionPhase",
    "EvolutionPipeline",
    "EvolutionResult",
    "EvolutionStrategy",
    "Score",
    "StopReason",
]
