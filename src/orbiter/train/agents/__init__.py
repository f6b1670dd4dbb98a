"""Whole episodes of agents as training data."""

from __future__ import annotations

from orbiter.train.agents.command import CommandAgent, CommandResult
from orbiter.train.agents.environments import EnvironmentAgent, Played
from orbiter.train.agents.episode import Episode, OpenEpisode, StopReason, current_episode
from orbiter.train.agents.runner import run_episode
from orbiter.train.agents.streams import AnsweredPrompt, Stream, token_weights, turns_to_streams

__all__ = [
    "AnsweredPrompt",
    "CommandAgent",
    "CommandResult",
    "EnvironmentAgent",
    "Episode",
    "OpenEpisode",
    "Played",
    "StopReason",
    "Stream",
    "current_episode",
    "run_episode",
    "token_weights",
    "turns_to_streams",
]
