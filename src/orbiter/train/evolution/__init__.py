"""Evolution of prompts, parameters, code and settings."""

from orbiter.train.evolution.config import EvolutionConfig, StopReason
from orbiter.train.evolution.event import Event, EvolutionPhase
from orbiter.train.evolution.pipeline import EvolutionPipeline
from orbiter.train.evolution.processes import InProcess
from orbiter.train.evolution.result import Baseline, EvolutionResult
from orbiter.train.evolution.strategies.baselines import BestOfN, RandomSearch
from orbiter.train.evolution.strategies.callables import CallableEvolution
from orbiter.train.evolution.strategies.cma import CMAEvolution
from orbiter.train.evolution.strategies.numeric import NumericEvolution
from orbiter.train.evolution.strategies.population import PopulationTraining, Trainee
from orbiter.train.evolution.strategies.prompt import PromptEvolution, Verdict
from orbiter.train.evolution.strategies.space import Choice, Float, Int
from orbiter.train.evolution.strategy import Context, EpochRecord, EvolutionStrategy, Score

__all__ = [
    "Baseline",
    "BestOfN",
    "CMAEvolution",
    "CallableEvolution",
    "Choice",
    "Context",
    "EpochRecord",
    "Event",
    "EvolutionConfig",
    "EvolutionPhase",
    "EvolutionPipeline",
    "EvolutionResult",
    "EvolutionStrategy",
    "Float",
    "InProcess",
    "Int",
    "NumericEvolution",
    "PopulationTraining",
    "PromptEvolution",
    "RandomSearch",
    "Score",
    "StopReason",
    "Trainee",
    "Verdict",
]
