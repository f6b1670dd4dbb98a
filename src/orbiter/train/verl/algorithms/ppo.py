"""PPO: a value function predicts the return, and each token is credited against the prediction.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orbiter.train.checks import Number, OrNone, setting
from orbiter.train.errors import ConfigError
from orbiter.train.trainer.config import VerlKeys
from orbiter.train.verl.algorithms.base import (
    ACTOR,
    KL_NAMES,
    Algorithm,
    Credited,
    RewardConfig,
    Samples,
    loss_settings,
)
from orbiter.train.verl.algorithms.turns import tokens_by_episode, turn_rewards

if TYPE_CHECKING:
    from torch import Tensor

    from orbiter.train.engine.objective import PolicyObjective
    from orbiter.train.rl import Gae

NEVER = 1e9
"""A bound that is never reached, since verl has no value that disables the clip."""


@dataclass(frozen=True, kw_only=True)
class PpoConfig(RewardConfig):
    """PPO's own settings."""

    __slots__ = ()

    gae_lambda: float = setting(
        0.95,
        "Trades bias for variance in generalised advantage estimation.",
        Number(at_least=0, at_most=1),
        verl=VerlKeys(("algorithm.lam",)),
    )
    vf_coef: float = setting(
        0.5,
        "Weight of the value loss relative to the policy loss.",
        Number(at_least=0),
    )
    clip_range_value: float | None = setting(
        0.2,
        "Largest change of a value from its old prediction that lowers the loss; none: no clip.",
        OrNone(Number(above=0)),
        verl=VerlKeys(("critic.cliprange_value",), off=NEVER),
    )


class Ppo(Algorithm[PpoConfig]):
    """Credits each token against a learned prediction."""

    title = "PPO"
    summary = "A value head predicts the return; each token is credited against the prediction."
    value_head = True
    verl_kl = "actor/reward_kl_penalty"

    def needs_old_logprob(self, config: PpoConfig) -> bool:
        """Return whether there is a KL penalty on the rewards."""
        return config.kl_coef > 0

    def check(self, config: PpoConfig) -> None:
        """Refuse credit that compares episodes, which PPO does not do."""
        super().check(config)
        if config.credit not in ("episode", "turn"):
            raise ConfigError(
                f"credit={config.credit!r} compares episodes with each other; PPO compares with "
                "its value head: use 'episode' (by token), 'turn', or algorithm='grpo'"
            )

    def credit(self, config: PpoConfig, samples: Samples) -> Credited:
        """Compare the rewards, minus the KL penalty of each token, with the value head."""
        from orbiter.train.engine.update import value
        from orbiter.train.rl import explained_variance, masked_mean, whiten
        from orbiter.train.rl.kl import KL_ESTIMATES, kl_k3

        batch, mask = samples.batch, samples.batch.mask
        reward = samples.reward[samples.valid].to(mask.device)
        metrics, kl = dict[str, float](), None
        # Both are needed: the penalty compares the policy that sampled with the reference.
        if batch.ref_logprob is not None and batch.old_logprob is not None:
            estimate = KL_ESTIMATES[config.kl_estimator or "k1"]
            kl = estimate(batch.old_logprob, batch.ref_logprob, mask)
            # The metric is always k3, so that runs with different penalties can be compared.
            measured = kl_k3(batch.old_logprob, batch.ref_logprob, mask)
            metrics["kl"] = masked_mean(measured, mask).item()
        old_value = value(samples.policy, batch, micro_batch_tokens=config.micro_batch_tokens)
        estimated = _of_answers if samples.turns is None else _of_episodes
        # The values are those before the update, also for the clip of the value loss.
        advantage, return_ = estimated(config, samples, old_value, kl)
        metrics["explained_variance"] = explained_variance(old_value, return_, mask).item()
        metrics["value"] = masked_mean(old_value, mask).item()
        # Whitened over the batch, because PPO has no group whose spread would set the scale.
        credited = replace(
            batch, advantage=whiten(advantage, mask), return_=return_, old_value=old_value
        )
        return Credited(credited, metrics, flat=bool(reward.min() == reward.max()))

    def objective(self, config: PpoConfig) -> PolicyObjective:
        """Return the clipped surrogate and the value loss; the KL is already in the rewards."""
        from orbiter.train.engine.objective import PolicyObjective

        return PolicyObjective(
            # A KL coefficient here would count the KL twice.
            **{**loss_settings(config), "kl_coef": 0.0, "kl_estimator": "k3"},
            vf_coef=config.vf_coef,
            clip_range_value=config.clip_range_value,
        )

    def verl_overrides(self, config: PpoConfig) -> dict[str, object]:
        """Return verl's gae estimator, which brings a critic, and the KL in the reward."""
        made: dict[str, object] = {
            "algorithm.adv_estimator": "gae",
            "algorithm.use_kl_in_reward": config.kl_coef > 0,
            f"{ACTOR}.use_kl_loss": False,
        }
        if config.kl_coef:
            # verl also has an adaptive controller; fixed is what kl_coef means here.
            made["algorithm.kl_ctrl.type"] = "fixed"
            made["algorithm.kl_ctrl.kl_coef"] = config.kl_coef
            made["algorithm.kl_penalty"] = KL_NAMES[config.kl_estimator or "k1"]
        return made

    def verl_notes(self) -> Sequence[str]:
        """Explain how verl's critic differs."""
        return ("vf_coef is not used: verl's critic is a separate network",)

    def is_flat(self, metrics: Mapping[str, float]) -> bool:
        """Return whether all samples got the same reward."""
        return metrics.get("reward_std") == 0


def _of_answers(config: PpoConfig, samples: Samples, old_value: Tensor, kl: Tensor | None) -> Gae:
    """Estimate the advantages of single answers: each row has its reward on the last token."""
    from orbiter.train.rl import gae, token_reward

    mask = samples.batch.mask
    reward = samples.reward[samples.valid].to(mask.device)
    return gae(
        token_reward(reward.float(), mask, kl=kl, kl_coef=config.kl_coef),
        old_value,
        mask,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )


def _of_episodes(config: PpoConfig, samples: Samples, old_value: Tensor, kl: Tensor | None) -> Gae:
    """Estimate the advantages over whole episodes, whose turns may be in several streams.

    The tokens of an episode are put in the order of its turns; each turn has its rewards on its
    last token.
    """
    from orbiter.train.rl import gae, turn_gae
    from orbiter.train.rl.advantage import Gae
    from orbiter.train.rl.masked import only

    assert samples.turns is not None
    tokens = tokens_by_episode(samples)
    reward = turn_rewards(samples, tokens)
    if kl is not None:
        # Outside the mask the KL may be NaN, and 0 * NaN would still be NaN.
        reward = reward - config.kl_coef * tokens.gather(only(kl, samples.batch.mask))
    value = tokens.gather(old_value)
    discounts = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
    if config.credit == "turn":
        estimate = turn_gae(reward, value, tokens.turn, tokens.mask, **discounts)
    else:
        estimate = gae(reward, value, tokens.mask, **discounts)
    return Gae(*(tokens.scatter(each, old_value.shape) for each in estimate))
