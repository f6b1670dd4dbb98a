"""The reward that an environment gives itself, as one of the rewards of a run."""

from __future__ import annotations

from collections.abc import Sequence

from orbiter.train.agents.environments.player import EnvironmentAgent, Played
from orbiter.train.errors import ConfigError
from orbiter.train.verl.reward import RewardSpec

ENVIRONMENT = "environment"
"""Name of the reward that an environment gives itself."""


def reward_of(agent: EnvironmentAgent, rewards: Sequence[RewardSpec]) -> list[RewardSpec]:
    """Return the environment's own reward, which is added to the others.

    Raises:
        ConfigError: it has none, and there are no others.
    """
    name, alone = agent.kind.name, not rewards

    def reward(result: Played) -> float:
        if result.reward is None and alone:
            raise ConfigError(f"{name} made an environment without get_reward(), and rewards=[]")
        return result.reward or 0.0

    if agent.has_reward is not False:
        return [RewardSpec(ENVIRONMENT, fn=reward)]
    if alone:
        raise ConfigError(
            "tool functions give no reward; give at least one RewardSpec(name=..., fn=...)"
            if agent.kind.functions
            else f"{name} has no get_reward(), and there are no rewards; write "
            "`def get_reward(self) -> float`, or give RewardSpec(name=..., fn=...)"
        )
    return []
