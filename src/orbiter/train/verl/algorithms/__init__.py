"""The algorithms: one file each, and the table that lists them.

To add one: write its file, give it a member of `VeRLAlgorithm` and a line in `ALGORITHMS`, and, if
it has settings of its own, add its config to the bases of `AlgorithmConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orbiter.train.verl.algorithms.base import Algorithm
from orbiter.train.verl.algorithms.grpo import Grpo, GrpoConfig
from orbiter.train.verl.algorithms.ppo import Ppo, PpoConfig


class VeRLAlgorithm(StrEnum):
    """How a reward becomes a gradient; the values do as well as the members."""

    PPO = "ppo"
    """A value head predicts the return; each token is credited against the prediction."""
    GRPO = "grpo"
    """The samples of one prompt are compared with each other; no value function."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(PpoConfig, GrpoConfig):
    """The settings of all algorithms."""

    __slots__ = ()


ALGORITHMS: Mapping[VeRLAlgorithm, Algorithm[AlgorithmConfig]] = {
    VeRLAlgorithm.PPO: Ppo(),
    VeRLAlgorithm.GRPO: Grpo(),
}
