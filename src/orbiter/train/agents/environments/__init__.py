"""Environments in which the policy acts itself, instead of an agent that calls it."""

from __future__ import annotations

from orbiter.train.agents.environments.environment import kind_of
from orbiter.train.agents.environments.player import EnvironmentAgent, Played
from orbiter.train.agents.environments.tools import Tool, make_tool

__all__ = ["EnvironmentAgent", "Played", "Tool", "kind_of", "make_tool"]
