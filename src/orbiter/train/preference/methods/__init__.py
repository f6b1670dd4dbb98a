"""The losses of pairs: one file each, and the table that lists them.

To add one: write its file, add a member to `PreferenceMethod` and a line to `PAIR_LOSSES`. KTO is
not in the table: it learns from single answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orbiter.train.preference.config import PreferenceConfig, PreferenceMethod
from orbiter.train.preference.methods.dpo import dpo_loss
from orbiter.train.preference.methods.ipo import ipo_loss
from orbiter.train.preference.methods.kto import VerdictLoss, kl_estimate, kto_loss
from orbiter.train.preference.methods.losses import Answers, PairLoss
from orbiter.train.preference.methods.orpo import orpo_loss
from orbiter.train.preference.methods.simpo import simpo_loss

PairLossFunction = Callable[[PreferenceConfig, Answers, Answers], PairLoss]
"""Called with the settings, the chosen answers and the rejected ones."""

PAIR_LOSSES: Mapping[PreferenceMethod, PairLossFunction] = {
    PreferenceMethod.DPO: lambda config, chosen, rejected: dpo_loss(
        chosen, rejected, beta=config.strength, label_smoothing=config.label_smoothing
    ),
    PreferenceMethod.IPO: lambda config, chosen, rejected: ipo_loss(
        chosen, rejected, beta=config.strength
    ),
    PreferenceMethod.ORPO: lambda config, chosen, rejected: orpo_loss(
        chosen, rejected, beta=config.strength
    ),
    PreferenceMethod.SIMPO: lambda config, chosen, rejected: simpo_loss(
        chosen, rejected, beta=config.strength, gamma=config.simpo_gamma
    ),
}

__all__ = [
    "PAIR_LOSSES",
    "Answers",
    "PairLoss",
    "PairLossFunction",
    "VerdictLoss",
    "dpo_loss",
    "ipo_loss",
    "kl_estimate",
    "kto_loss",
    "orpo_loss",
    "simpo_loss",
]
