"""How a run by reward goes: the knobs under the names the field gives them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from orbiter.train.engine.config import EngineConfig, one_of
from orbiter.train.errors import ConfigError, did_you_mean
from orbiter.train.trainer.config import number, whole
from orbiter.train.verl.reward import OnRewardError


class VeRLAlgorithm(StrEnum):
    """How a reward becomes a gradient."""

    PPO = "ppo"
    """A value head guesses what a state is worth; each token is credited against that guess."""
    GRPO = "grpo"
    """Siblings of one prompt are compared with each other; no value function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VeRLConfig(EngineConfig):
    """One run by reward. A step draws `group_size` samples of each of `batch_size` prompts."""

    algorithm: VeRLAlgorithm = VeRLAlgorithm.GRPO
    """PPO or GRPO; the values "ppo" and "grpo" will do."""
    epochs: int = 1
    """Passes over the prompts."""
    batch_size: int = 8
    """Prompts a step. The last step of an epoch takes what is left."""
    group_size: int = 8
    """Samples of each prompt a step; GRPO compares them with each other, so it needs two."""
    learning_rate: float = 1e-5
    """AdamW's step size, after `warmup_steps` updates of linear warm-up."""
    eval_every: int | None = None
    """Steps between two validations on `eval_dataset`; None: none before the end."""
    temperature: float = 1.0
    """Of sampling; the logprobs that are trained on are of the same tempered distribution."""
    kl_coef: float = 0.0
    """Weight of the KL from the model the run began with: in GRPO a term of the loss (the k3
    estimate), in PPO a price subtracted from each token's reward. 0 needs no reference model."""
    clip_range: float = 0.2
    """PPO's epsilon: the ratio to the sampling policy earns nothing beyond [1 - eps, 1 + eps]."""
    clip_range_high: float | None = None
    """The upper bound's own epsilon (DAPO's clip-higher); absent means `clip_range`."""
    scale_rewards: bool = True
    """GRPO divides by the group's standard deviation; False leaves that out (Dr. GRPO)."""
    loss_aggregation: Literal["token", "sequence"] = "token"
    """Mean over all tokens of the batch, or over sequences of each one's mean over its tokens."""
    gamma: float = 1.0
    """PPO's discount a token."""
    gae_lambda: float = 0.95
    """PPO's trade of bias for variance in generalised advantage estimation."""
    vf_coef: float = 0.5
    """Weight of PPO's value loss beside the policy loss."""
    clip_range_value: float | None = 0.2
    """How far PPO's value may move from its old guess and still earn; absent means no clip."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    ppo_epochs: int = 1
    """Passes over the samples of a step, for both algorithms. One pass in one minibatch is exactly
    on-policy: every ratio is 1 and nothing is clipped."""
    minibatch_size: int = 0
    """Samples an optimiser update takes; 0 takes all samples of the step in one update."""
    target_kl: float | None = None
    """A step's updates end once the KL from the sampling policy (nats a token) exceeds this."""
    on_reward_error: OnRewardError = "raise"
    """A reward that fails or is no finite number: "raise" stops the run, "skip" leaves the sample
    out, a number counts in its place."""
    reward_timeout_seconds: float = 60.0
    """How long one call of a reward function may take."""
    reward_concurrency: int = 16
    """Reward calls under way at once."""
    max_flat_steps: int = 20
    """Steps in a row without any difference in reward after which a run ends: as an error when
    there never was one, with a warning when there is nothing left to learn."""
    backend: Literal["local", "verl"] = "local"
    """Where the run takes place: this machine and process, or verl's workers on Ray. What follows
    is for verl."""
    nodes: int = 1
    """Machines of the cluster that the run takes."""
    gpus_per_node: int = 1
    """GPUs of each; on `device="cpu"` the worker processes of each."""
    rollout: Literal["auto", "vllm", "sglang", "trtllm", "transformers"] = "auto"
    """What samples: "auto" means vLLM, or, with `device="cpu"`, plain transformers."""
    tensor_parallel: int = 1
    """GPUs that share one copy of the model while it samples."""
    ray_address: str | None = None
    """Ray's job server, such as "http://head:8265"; absent means a Ray of its own, on this machine.
    Every node must see `output_dir` under the same path."""
    verl_overrides: Mapping[str, object] = field(default_factory=dict[str, object])
    """Further keys of verl's configuration, as verl names them; they win over ours."""
    verl_python: str | os.PathLike[str] | None = None
    """The interpreter that verl is installed for; absent means this one."""
    step_timeout_seconds: float = 3600.0
    """The longest time between two steps, the start of the job included; it is stopped then."""

    @property
    def rollout_name(self) -> str:
        """What samples, by verl's name."""
        if self.rollout != "auto":
            return self.rollout
        return "transformers" if self.device == "cpu" else "vllm"

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        _check_choices(self)
        _check_numbers(self)
        _check_batch(self)
        if self.backend == "verl":
            from orbiter.train.verl.cluster.limits import check_for_verl

            check_for_verl(self)


def _check_choices(config: VeRLConfig) -> None:
    try:
        object.__setattr__(config, "algorithm", VeRLAlgorithm(config.algorithm))
    except ValueError:
        near = did_you_mean(str(config.algorithm).lower(), [str(a) for a in VeRLAlgorithm])
        raise ConfigError(
            f"algorithm must be 'ppo' or 'grpo', got {config.algorithm!r}{near}"
        ) from None
    one_of("loss_aggregation", config.loss_aggregation, ("token", "sequence"))
    one_of("backend", config.backend, ("local", "verl"))
    one_of("rollout", config.rollout, ("auto", "vllm", "sglang", "trtllm", "transformers"))
    if config.on_reward_error not in ("raise", "skip"):
        if isinstance(config.on_reward_error, str):
            raise ConfigError(
                f"on_reward_error must be 'raise', 'skip' or a number, "
                f"got {config.on_reward_error!r}"
            )
        number("on_reward_error", config.on_reward_error)


def _check_numbers(config: VeRLConfig) -> None:
    for name in ("temperature", "reward_timeout_seconds", "step_timeout_seconds"):
        number(name, getattr(config, name), above=0)
    for name in ("clip_range", "gamma", "gae_lambda"):
        number(name, getattr(config, name), at_least=0, at_most=1)
    for name in ("kl_coef", "vf_coef", "ent_coef"):
        number(name, getattr(config, name), at_least=0)
    for name in ("clip_range_high", "clip_range_value", "target_kl"):
        if getattr(config, name) is not None:
            number(name, getattr(config, name), above=0)
    if not config.clip_range < 1 or config.clip_range == 0:
        raise ConfigError(f"clip_range must lie in (0, 1), got {config.clip_range!r}")
    counts = ("ppo_epochs", "reward_concurrency", "max_flat_steps")
    for name in (*counts, "nodes", "gpus_per_node", "tensor_parallel"):
        whole(name, getattr(config, name), at_least=1)


def _check_batch(config: VeRLConfig) -> None:
    """Explain the arithmetic where it does not come out: prompts, samples, samples an update."""
    whole("group_size", config.group_size, at_least=1)
    whole("minibatch_size", config.minibatch_size, at_least=0)
    if config.algorithm is VeRLAlgorithm.GRPO and config.group_size < 2:
        raise ConfigError(
            f"group_size={config.group_size}: GRPO compares the samples of one prompt with each "
            "other, so it needs at least 2 (4 to 16 are usual); PPO works with 1"
        )
    samples = config.batch_size * config.group_size
    if config.minibatch_size and samples % config.minibatch_size:
        divisors = [size for size in range(1, samples + 1) if samples % size == 0]
        near = sorted(divisors, key=lambda size: abs(math.log(size / config.minibatch_size)))[:2]
        raise ConfigError(
            f"a step has batch_size={config.batch_size} prompts x group_size={config.group_size} = "
            f"{samples} samples, which minibatch_size={config.minibatch_size} does not divide; "
            f"use {' or '.join(str(size) for size in sorted(near))}, or 0 for all in one update"
        )
