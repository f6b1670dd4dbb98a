"""The mathematics of learning by reward: pure functions of tensors, no files, no config.

Every `[B, T]` argument is aligned with the token ids: entry t belongs to token t. Where `mask` is
False, entries may hold anything, even NaN; it affects no value and no gradient. The equations with
their sources are in docs/algorithms.md.
"""

from orbiter.train.rl.advantage import (
    Gae,
    explained_variance,
    gae,
    group_relative_advantage,
    token_reward,
    whiten,
)
from orbiter.train.rl.kl import kl_k1, kl_k2, kl_k3
from orbiter.train.rl.loss import (
    Aggregation,
    PolicyLoss,
    ValueLoss,
    aggregate,
    clipped_surrogate,
    clipped_value_loss,
    entropy,
)
from orbiter.train.rl.masked import masked_mean, masked_sum, masked_var
from orbiter.train.rl.turns import returns_to_go, state_advantage, turn_advantage, turn_gae

__all__ = [
    "Aggregation",
    "Gae",
    "PolicyLoss",
    "ValueLoss",
    "aggregate",
    "clipped_surrogate",
    "clipped_value_loss",
    "entropy",
    "explained_variance",
    "gae",
    "group_relative_advantage",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "returns_to_go",
    "state_advantage",
    "token_reward",
    "turn_advantage",
    "turn_gae",
    "whiten",
]
