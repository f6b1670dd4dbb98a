"""Who deserves what: the rewards of a step's samples as an advantage for every token.

Left out: the formulas (`rl/`) and the rewards themselves (`reward.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.objective import PolicyObjective
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.update import logprob, ref_logprob, value
from orbiter.train.rl import (
    explained_variance,
    gae,
    group_relative_advantage,
    kl_k1,
    kl_k3,
    masked_mean,
    token_reward,
    whiten,
)
from orbiter.train.verl.config import VeRLAlgorithm, VeRLConfig
from orbiter.train.verl.reward import Scores


def make_objective(config: VeRLConfig) -> PolicyObjective:
    """Say what an update minimises: PPO has a value term, GRPO keeps its KL in the loss."""
    ppo = config.algorithm is VeRLAlgorithm.PPO
    return PolicyObjective(
        clip_range=config.clip_range,
        clip_range_high=config.clip_range_high,
        aggregation=config.loss_aggregation,
        kl_coef=0.0 if ppo else config.kl_coef,
        vf_coef=config.vf_coef if ppo else 0.0,
        clip_range_value=config.clip_range_value,
        ent_coef=config.ent_coef,
    )


class Credited(NamedTuple):
    """The samples of a step as a batch, and what crediting them has measured."""

    batch: Batch | None
    """None where every sample was skipped."""
    metrics: dict[str, float]
    flat: bool
    """Whether no sample was worth more than another that it is compared with."""


def credit(
    policy: Policy, config: VeRLConfig, rollouts: Sequence[Rollout], scores: Scores
) -> Credited:
    """Turn rewards into an advantage for every token, by the algorithm of the config.

    Skipped samples are in no batch and in no mean.
    """
    reward, valid = _grouped(scores.total, config.group_size)
    kept = valid.flatten().nonzero()[:, 0].tolist()
    if not kept:
        return Credited(None, {}, flat=True)
    batch = collate([rollouts[i] for i in kept], device=policy.device)
    batch = _with_old_policies(policy, config, batch)
    if config.algorithm is VeRLAlgorithm.PPO:
        return _credit_by_value(policy, config, batch, reward[valid].to(policy.device))
    advantage = group_relative_advantage(
        reward, valid=valid, scale="std" if config.scale_rewards else "none"
    )
    flat_groups = 1 - advantage.ne(0).any(dim=-1).float().mean().item()
    spread = advantage[valid].float().to(policy.device)[:, None] * batch.mask
    flat = flat_groups == 1
    return Credited(replace(batch, advantage=spread), {"flat_groups": flat_groups}, flat)


def _credit_by_value(
    policy: Policy, config: VeRLConfig, batch: Batch, reward: Float[Tensor, "B"]
) -> Credited:
    """PPO: the reward less the KL's price, a token at a time, against the value head's guess."""
    mask, metrics, kl = batch.mask, dict[str, float](), None
    if batch.ref_logprob is not None and batch.old_logprob is not None:
        kl = kl_k1(batch.old_logprob, batch.ref_logprob, mask)
        metrics["kl"] = masked_mean(kl_k3(batch.old_logprob, batch.ref_logprob, mask), mask).item()
    old_value = value(policy, batch, micro_batch_tokens=config.micro_batch_tokens)
    advantage, return_ = gae(
        token_reward(reward.float(), mask, kl=kl, kl_coef=config.kl_coef),
        old_value,
        mask,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    metrics["explained_variance"] = explained_variance(old_value, return_, mask).item()
    metrics["value"] = masked_mean(old_value, mask).item()
    credited = replace(
        batch, advantage=whiten(advantage, mask), return_=return_, old_value=old_value
    )
    return Credited(credited, metrics, flat=bool(reward.min() == reward.max()))


def _with_old_policies(policy: Policy, config: VeRLConfig, batch: Batch) -> Batch:
    """Add the logprobs that the updates will be measured against, where there is a need.

    A single update needs no old ones: they are the present ones, and the ratio is exactly 1.
    """
    ppo = config.algorithm is VeRLAlgorithm.PPO
    several = config.ppo_epochs > 1 or 0 < config.minibatch_size < len(batch.length)
    if several or (ppo and config.kl_coef):
        old = logprob(
            policy,
            batch,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        batch = replace(batch, old_logprob=old)
    if config.kl_coef:
        frozen = ref_logprob(
            policy,
            batch,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        batch = replace(batch, ref_logprob=frozen)
    return batch


def _grouped(
    total: Sequence[float | None], group_size: int
) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"]]:
    """Lay out the rewards by prompt, in float64, and say which samples have one."""
    reward = torch.tensor([each or 0.0 for each in total], dtype=torch.float64)
    valid = torch.tensor([each is not None for each in total])
    return reward.view(-1, group_size), valid.view(-1, group_size)
