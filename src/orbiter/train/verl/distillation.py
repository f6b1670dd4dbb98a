"""Checks of a distillation that depend on the rest of the run; the settings are in `algorithms/`.

The teacher itself is in `teaching.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from orbiter.train.errors import ConfigError
from orbiter.train.verl.config import VeRLAlgorithm, VeRLConfig
from orbiter.train.verl.reward import RewardSpec


def check_distillation(
    config: VeRLConfig, rewards: Sequence[RewardSpec], *, has_agent: bool
) -> None:
    """Make sure that the settings of a teacher go with the algorithm, the rewards and the agent.

    Raises:
        ConfigError: names the setting, its value and what to do instead.
    """
    if config.algorithm != VeRLAlgorithm.DISTILL:
        _refuse_teacher(config)
        return
    if config.max_extra_groups:
        raise ConfigError(
            f"max_extra_groups={config.max_extra_groups} replaces groups with equal rewards, which "
            "a teacher still teaches on; use 0"
        )
    # Pools sort prompts by the rewards of the policy's own answers, and an answer of the data has
    # none.
    if config.has_pools and (config.distill_lambda != 1 or not rewards):
        raise ConfigError(
            "solved_rate and unsolved_rate need rewards of the policy's own answers to every "
            f"prompt; there are {len(rewards)} rewards, and distill_lambda is "
            f"{config.distill_lambda:g}"
        )
    if any(reward.weight for reward in rewards) and config.group_size < 2:
        raise ConfigError(
            "the rewards compare the samples of a group, and group_size=1 leaves nothing to "
            "compare; use at least 2, or weight 0 to measure a reward without learning from it"
        )
    if has_agent:
        _check_with_agent(config)


def _refuse_teacher(config: VeRLConfig) -> None:
    for name in ("teacher", "teacher_url"):
        value = getattr(config, name)
        if value is not None:
            raise ConfigError(
                f"{name}={value!r} has no effect with algorithm={str(config.algorithm)!r}; use "
                "algorithm='distill'"
            )


def _check_with_agent(config: VeRLConfig) -> None:
    if config.backend == "verl":
        raise ConfigError(
            "algorithm='distill' with agent= needs backend='local': verl asks a teacher in its own "
            "agent loops, and the episodes of agent= are played in ours"
        )
    if config.distill_lambda != 1:
        raise ConfigError(
            f"distill_lambda={config.distill_lambda:g} is for answers to prompts; with agent= the "
            "policy plays every episode itself: use distill_lambda=1"
        )
