"""GRPO: the samples of one prompt are compared with each other; no value function.

Shao et al. 2024, https://arxiv.org/abs/2402.03300. Its settings also make it Dr. GRPO
(`scale_rewards=False` with `loss_aggregation="constant"`) and GSPO (`ratio="sequence"`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from orbiter.train.checks import Boolean, OneOf, setting
from orbiter.train.trainer.config import VerlKeys
from orbiter.train.verl.algorithms.base import (
    ACTOR,
    Algorithm,
    Credited,
    RewardConfig,
    Samples,
    Turns,
    kl_in_the_loss,
    loss_settings,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from orbiter.train.engine.update import Objective


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(RewardConfig):
    """GRPO's own settings."""

    __slots__ = ()

    scale_rewards: bool = setting(
        True,
        "Divide by the standard deviation of the group; false leaves that out (Dr. GRPO).",
        Boolean(),
        verl=VerlKeys(("algorithm.norm_adv_by_std_in_grpo",)),
    )
    ratio: Literal["token", "sequence"] = setting(
        "token",
        "Ratio to the sampling policy of each token, or one for the whole sequence (GSPO).",
        OneOf(("token", "sequence")),
        verl=VerlKeys((f"{ACTOR}.policy_loss.loss_mode",), written=False),
    )


class Grpo(Algorithm[GrpoConfig]):
    """Compares the samples of one prompt with each other."""

    title = "GRPO"
    summary = "The samples of one prompt are compared with each other; no value function."
    least_group = 2

    def credit(self, config: GrpoConfig, samples: Samples) -> Credited:
        """Give all tokens of a sample its advantage over the other samples of its prompt.

        If credit is assigned by turn, the tokens of a turn share its advantage.
        """
        from orbiter.train.rl import group_relative_advantage

        # Without the division, prompts with a wide spread of rewards dominate; with it, all count
        # alike.
        scale: Literal["std", "none"] = "std" if config.scale_rewards else "none"
        if samples.turns is not None and config.credit in ("turn", "returns"):
            return spread_turns(samples, compared_turns(config, samples.turns, scale=scale))
        advantage = group_relative_advantage(samples.reward, valid=samples.valid, scale=scale)
        return with_states(config, samples, advantage, scale=scale)

    def objective(self, config: GrpoConfig) -> Objective:
        """Return the clipped surrogate, with the KL as a term of the loss."""
        from orbiter.train.engine.objective import PolicyObjective

        return PolicyObjective(**loss_settings(config), ratio=config.ratio)

    def opening(self) -> Sequence[str]:
        """Explain why the loss is near 0."""
        return (
            f"{self.title}'s loss is near 0 by construction while the policy is the one that "
            "sampled: the advantages of a group sum to 0, except for unequal answer lengths. "
            "Watch reward, KL, entropy and gradient norm instead",
        )

    def verl_overrides(self, config: GrpoConfig) -> dict[str, object]:
        """Return verl's grpo estimator, with the vanilla or the GSPO loss."""
        made = {"algorithm.adv_estimator": "grpo", **kl_in_the_loss(config)}
        if config.ratio == "sequence":
            made[f"{ACTOR}.policy_loss.loss_mode"] = "gspo"
        return made

    def is_flat(self, metrics: Mapping[str, float]) -> bool:
        """Return whether every advantage was 0."""
        # verl reports the extremes over all tokens, so equal zeros mean that all are zero.
        ends = [metrics.get(f"verl/critic/advantages/{end}") for end in ("min", "max")]
        return ends == [0, 0]


def spread(samples: Samples, advantage: Float[Tensor, "P G"]) -> Credited:
    """Give every token of a sample the sample's advantage, in all its rows."""
    # Counted before the advantage is spread over tokens, so long answers do not count more.
    flat_groups = 1 - advantage.ne(0).any(dim=-1).float().mean().item()
    batch, device = samples.batch, samples.batch.mask.device
    # Rewards are compared in float64; only the finished advantage is rounded to float32.
    by_row = advantage[samples.valid].float().to(device)[samples.sample_of_row]
    by_token = by_row[:, None] * batch.mask
    metrics = {"flat_groups": flat_groups}
    return Credited(replace(batch, advantage=by_token), metrics, flat=flat_groups == 1)


def with_states(
    config: GrpoConfig,
    samples: Samples,
    advantage: Float[Tensor, "P G"],
    *,
    scale: Literal["std", "none"],
) -> Credited:
    """Give every token its sample's advantage; with GiGPO, add that of its turn in its state."""
    from orbiter.train.rl import returns_to_go, state_advantage

    turns = samples.turns
    if turns is None or config.credit != "gigpo":
        return spread(samples, advantage)
    returns = returns_to_go(turns.reward, turns.valid, gamma=config.gamma)
    in_state = state_advantage(returns, turns.state, turns.valid, scale=scale)
    # GiGPO's sum of an episode's advantage and that of its turn in its state.
    return spread_turns(samples, advantage[..., None] + config.gigpo_weight * in_state)


def compared_turns(
    config: GrpoConfig, turns: Turns, *, scale: Literal["std", "none"]
) -> Float[Tensor, "P G K"]:
    """Return the advantage of each turn over those of the other episodes."""
    from orbiter.train.rl import returns_to_go, turn_advantage

    returns = returns_to_go(turns.reward, turns.valid, gamma=config.gamma)
    compare: Literal["turn", "group"] = "turn" if config.credit == "turn" else "group"
    return turn_advantage(returns, turns.valid, compare=compare, scale=scale)


def spread_turns(samples: Samples, advantage: Float[Tensor, "P G K"]) -> Credited:
    """Give every token of a turn the advantage of the turn."""
    assert samples.turns is not None
    of_token, batch = samples.turns.of_token, samples.batch
    flat_groups = 1 - advantage.flatten(1).ne(0).any(dim=-1).float().mean().item()
    by_row = advantage[samples.valid].float().to(batch.mask.device)[samples.sample_of_row]
    # -1 marks tokens that are not trained; the mask sets them to zero after the gather.
    by_token = by_row.gather(1, of_token.clamp(min=0)) * batch.mask
    metrics = {"flat_groups": flat_groups}
    return Credited(replace(batch, advantage=by_token), metrics, flat=flat_groups == 1)
