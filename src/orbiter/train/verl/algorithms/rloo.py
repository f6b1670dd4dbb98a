"""RLOO: each sample is compared with the mean of the other samples of its prompt.

Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740. `scale_rewards` has no effect: RLOO does not
divide by the standard deviation.
"""

from __future__ import annotations

from orbiter.train.verl.algorithms.base import Credited, Samples
from orbiter.train.verl.algorithms.grpo import (
    Grpo,
    GrpoConfig,
    compared_turns,
    spread_turns,
    with_states,
)


class Rloo(Grpo):
    """Compares each sample with the mean of the others."""

    title = "RLOO"
    summary = "Each sample is compared with the mean of the other samples of its prompt."

    def credit(self, config: GrpoConfig, samples: Samples) -> Credited:
        """Give all tokens of a sample, or of a turn, its advantage over the mean of the others."""
        from orbiter.train.rl.rloo import leave_one_out_advantage

        if samples.turns is not None and config.credit in ("turn", "returns"):
            advantage = compared_turns(config, samples.turns, scale="none")
            n = samples.valid.sum(dim=-1)[:, None, None].to(advantage.dtype)
            # compared_turns has the factor (n - 1) / n, which RLOO's unbiased baseline does not
            # need.
            return spread_turns(samples, advantage * n / (n - 1).clamp(min=1))
        advantage = leave_one_out_advantage(samples.reward, valid=samples.valid)
        return with_states(config, samples, advantage, scale="none")

    def verl_overrides(self, config: GrpoConfig) -> dict[str, object]:
        """Return verl's rloo estimator."""
        return {**super().verl_overrides(config), "algorithm.adv_estimator": "rloo"}
