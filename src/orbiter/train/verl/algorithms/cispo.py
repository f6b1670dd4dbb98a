"""CISPO: GRPO's advantages, with a clipped importance weight instead of the clipped surrogate.

MiniMax 2025, https://arxiv.org/abs/2506.13585.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from orbiter.train.errors import ConfigError
from orbiter.train.verl.algorithms.base import ACTOR, loss_settings
from orbiter.train.verl.algorithms.grpo import Grpo, GrpoConfig

if TYPE_CHECKING:
    from orbiter.train.engine.objective import PolicyObjective


class Cispo(Grpo):
    """Clips the importance weight, so that every token keeps its gradient."""

    title = "CISPO"
    summary = "GRPO with a clipped importance weight: no token loses its gradient."

    def check(self, config: GrpoConfig) -> None:
        """Refuse GSPO's ratio, which CISPO does not have."""
        super().check(config)
        refuse_sequence_ratio(self.title, config)

    def objective(self, config: GrpoConfig) -> PolicyObjective:
        """Return the weighted log likelihood, with the KL as a term of the loss."""
        from orbiter.train.engine.objective import PolicyObjective
        from orbiter.train.rl.cispo import cispo_loss

        surrogate = partial(
            cispo_loss, clip_range=config.clip_range, clip_range_high=config.clip_range_high
        )
        # loss_settings also has the clip range, which only the default surrogate reads.
        return PolicyObjective(**loss_settings(config), surrogate=surrogate)

    def verl_overrides(self, config: GrpoConfig) -> dict[str, object]:
        """Return verl's grpo estimator with its cispo loss."""
        return {**super().verl_overrides(config), f"{ACTOR}.policy_loss.loss_mode": "cispo"}


def refuse_sequence_ratio(title: str, config: GrpoConfig) -> None:
    """Refuse `ratio="sequence"` for an algorithm whose loss weights each token.

    Raises:
        ConfigError: it is set.
    """
    if config.ratio == "sequence":
        raise ConfigError(
            f"ratio='sequence' makes GRPO into GSPO; {title} weights each token: use ratio='token' "
            "or algorithm='grpo'"
        )
