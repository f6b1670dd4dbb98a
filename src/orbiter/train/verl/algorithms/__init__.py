"""The algorithms: one file each, and the table that lists them.

To add one: write its file, add a member to `VeRLAlgorithm` and a line to `ALGORITHMS`, and, if it
has its own settings, add its config to the bases of `AlgorithmConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orbiter.train.verl.algorithms.base import Algorithm
from orbiter.train.verl.algorithms.cispo import Cispo
from orbiter.train.verl.algorithms.distill import Distill, DistillConfig
from orbiter.train.verl.algorithms.grpo import Grpo
from orbiter.train.verl.algorithms.ppo import Ppo, PpoConfig
from orbiter.train.verl.algorithms.rloo import Rloo
from orbiter.train.verl.algorithms.sapo import Sapo, SapoConfig


class VeRLAlgorithm(StrEnum):
    """The algorithms that turn rewards into gradients; the string values are accepted as well."""

    PPO = "ppo"
    """A value head predicts the return; each token is credited against the prediction."""
    GRPO = "grpo"
    """The samples of one prompt are compared with each other; no value function."""
    RLOO = "rloo"
    """Each sample is compared with the mean of the other samples of its prompt."""
    CISPO = "cispo"
    """GRPO with a clipped importance weight: no token loses its gradient."""
    SAPO = "sapo"
    """GRPO with a smooth gate instead of the clip."""
    DISTILL = "distill"
    """The policy learns a teacher's distribution on its own samples; rewards may be added."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(PpoConfig, SapoConfig, DistillConfig):
    """The settings of all algorithms."""

    __slots__ = ()


ALGORITHMS: Mapping[VeRLAlgorithm, Algorithm[AlgorithmConfig]] = {
    VeRLAlgorithm.PPO: Ppo(),
    VeRLAlgorithm.GRPO: Grpo(),
    VeRLAlgorithm.RLOO: Rloo(),
    VeRLAlgorithm.CISPO: Cispo(),
    VeRLAlgorithm.SAPO: Sapo(),
    VeRLAlgorithm.DISTILL: Distill(),
}
