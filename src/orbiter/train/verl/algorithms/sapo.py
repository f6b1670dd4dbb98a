"""SAPO: GRPO's advantages, with a smooth gate instead of the clip.

Gao et al. 2025, https://arxiv.org/abs/2511.20347.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from orbiter.train.checks import Number, setting
from orbiter.train.errors import ConfigError
from orbiter.train.trainer.config import VerlKeys
from orbiter.train.verl.algorithms.base import ACTOR, loss_settings
from orbiter.train.verl.algorithms.cispo import refuse_sequence_ratio
from orbiter.train.verl.algorithms.grpo import Grpo, GrpoConfig

if TYPE_CHECKING:
    from orbiter.train.engine.objective import PolicyObjective


@dataclass(frozen=True, kw_only=True)
class SapoConfig(GrpoConfig):
    """SAPO's own settings."""

    __slots__ = ()

    tau_positive: float = setting(
        1.0,
        "SAPO's sharpness of the gate for tokens with a positive advantage.",
        Number(above=0),
        verl=VerlKeys((f"{ACTOR}.tau_pos",), written=False),
    )
    tau_negative: float = setting(
        1.05,
        "SAPO's sharpness of the gate for other tokens; larger than tau_positive is more careful.",
        Number(above=0),
        verl=VerlKeys((f"{ACTOR}.tau_neg",), written=False),
    )


class Sapo(Grpo):
    """Lets a token's gradient fade smoothly as its ratio leaves 1."""

    title = "SAPO"
    summary = "GRPO with a smooth gate instead of the clip."

    def check(self, config: GrpoConfig) -> None:
        """Refuse GSPO's ratio, which SAPO does not have."""
        super().check(config)
        refuse_sequence_ratio(self.title, config)

    def objective(self, config: GrpoConfig) -> PolicyObjective:
        """Return the gated surrogate, with the KL as a term of the loss."""
        from orbiter.train.engine.objective import PolicyObjective
        from orbiter.train.rl.sapo import sapo_loss

        own = _own(config)
        surrogate = partial(sapo_loss, tau_positive=own.tau_positive, tau_negative=own.tau_negative)
        return PolicyObjective(**loss_settings(config), surrogate=surrogate)

    def verl_overrides(self, config: GrpoConfig) -> dict[str, object]:
        """Return verl's grpo estimator with its sapo loss, which always averages by sequence."""
        if config.loss_aggregation != "sequence":
            raise ConfigError(
                f"loss_aggregation={config.loss_aggregation!r} has no counterpart in verl's SAPO, "
                "which always averages by sequence; use 'sequence'"
            )
        own = _own(config)
        return {
            **super().verl_overrides(config),
            f"{ACTOR}.policy_loss.loss_mode": "sapo",
            f"{ACTOR}.tau_pos": own.tau_positive,
            f"{ACTOR}.tau_neg": own.tau_negative,
        }


def _own(config: GrpoConfig) -> SapoConfig:
    """Return the config with SAPO's settings, which every full config has."""
    assert isinstance(config, SapoConfig)
    return config
