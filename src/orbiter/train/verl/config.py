"""The settings of training by reward: algorithm, rewards and backend."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from orbiter.train.checks import (
    Boolean,
    Number,
    OneOf,
    OrNone,
    PathName,
    Text,
    WholeNumber,
    WordOrNumber,
    setting,
    shown,
)
from orbiter.train.errors import ConfigError, did_you_mean
from orbiter.train.trainer.config import NotInVerl, VerlKeys
from orbiter.train.verl.algorithms import ALGORITHMS, AlgorithmConfig, VeRLAlgorithm
from orbiter.train.verl.reward import OnRewardError

__all__ = ["VeRLAlgorithm", "VeRLConfig"]

NO_GOLD = "gold= is measured with backend='local' only"
NO_POOLS = "verl asks every prompt equally often"
OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg"
"""The part of verl's configuration that holds DAPO's penalty for long answers."""


def _check_algorithm(_: str, value: object) -> None:
    """Accept the name of an algorithm, such as 'grpo' or 'ppo'."""
    names = [str(algorithm) for algorithm in VeRLAlgorithm]
    if not isinstance(value, str) or value not in names:
        listed = " or ".join([", ".join(map(repr, names[:-1])), repr(names[-1])])
        hint = did_you_mean(str(value).lower(), names)
        raise ConfigError(f"algorithm must be {listed}, got {shown(value)}{hint}")


def _check_overrides(name: str, value: object) -> None:
    """Accept a table of verl's keys and their values."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must map verl's keys to values, got {shown(value)}")
    for key, each in value.items():
        if not isinstance(key, str) or not key or "=" in key:
            raise ConfigError(f"a key of {name} must be a dotted name, got {key!r}")
        try:
            json.dumps(each)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}[{key!r}] cannot be written as JSON: {error}") from error


def _check_models(name: str, value: object) -> None:
    """Accept a list of model names, or none."""
    texts = isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)
    if value is not None and not (texts and value):
        raise ConfigError(f"{name} must be a list of model names or None, got {shown(value)}")


def _check_variables(name: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{name} must be a list of names, got {shown(value)}")
    for each in value:
        if not each or "=" in each:
            raise ConfigError(
                f"{name} must name variables, without their values; got the name "
                f"{each.partition('=')[0]!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VeRLConfig(AlgorithmConfig):
    """The settings of training by reward.

    A step draws `group_size` samples for each of `batch_size` prompts.
    """

    algorithm: VeRLAlgorithm = setting(
        VeRLAlgorithm.GRPO,
        "How a reward becomes a gradient: " + ", ".join(VeRLAlgorithm) + ".",
        _check_algorithm,
        verl=VerlKeys(("algorithm.adv_estimator",), written=False),
    )
    on_reward_error: OnRewardError = setting(
        "raise",
        'When a reward fails or is not a finite number: "raise" stops the run, "skip" leaves '
        "the sample out, and a number is used as the reward.",
        WordOrNumber("raise", "skip"),
        verl=NotInVerl(
            "verl pads a group that lacks a sample; use 'raise' or a number", refused=("skip",)
        ),
    )
    keep_special_tokens: bool = setting(
        False,
        "Whether rewards see an output with its special tokens, such as [TOOL_CALLS]; a parameter "
        "named raw_output gets them in any case.",
        Boolean(),
        verl=NotInVerl("verl's rewards get the text without special tokens"),
    )
    reward_timeout_seconds: float = setting(
        60.0, "Time limit of one call of a reward function, in seconds.", Number(above=0)
    )
    reward_concurrency: int = setting(16, "Reward calls at the same time.", WholeNumber(at_least=1))
    max_flat_steps: int = setting(
        20,
        "Steps in a row without any difference in reward after which a run ends: with an error if "
        "there never was one, with a warning if nothing is left to learn.",
        WholeNumber(at_least=1),
    )
    gold_every: int = setting(
        10,
        "With gold=: steps between two measurements of the gold reward on held-out tasks.",
        WholeNumber(at_least=1),
        verl=NotInVerl(NO_GOLD),
    )
    gold_tasks: int = setting(
        16,
        "With gold=: held-out tasks that it is measured on, of eval_dataset or else of the data.",
        WholeNumber(at_least=4),
        verl=NotInVerl(NO_GOLD),
    )
    gold_samples: int = setting(
        4,
        "With gold=: samples of each of these tasks, drawn as in training; 0: one greedy answer.",
        WholeNumber(at_least=0),
        verl=NotInVerl(NO_GOLD),
    )
    gold_stop: bool = setting(
        False,
        "With gold=: end the run after the step in which the reward rises and gold does not.",
        Boolean(),
        may_change=True,
        verl=NotInVerl(NO_GOLD),
    )
    max_turns: int = setting(
        8,
        "With agent=: answers of the policy in an episode at most; a further model call fails.",
        WholeNumber(at_least=1),
    )
    max_episode_tokens: int | None = setting(
        None,
        "With agent=: tokens of an episode at most, prompts and answers, those that a turn shares "
        "with the turn it continues counted once; none means only the model's context limits a "
        "turn.",
        OrNone(WholeNumber(at_least=1)),
    )
    episode_timeout_seconds: float = setting(
        600.0, "With agent=: time limit of an episode, in seconds.", Number(above=0)
    )
    max_failed_share: float = setting(
        0.5,
        "With agent=: share of a step's episodes that may fail (the agent raised, took too long, "
        "or got no answer of the policy); more end the run with an error.",
        Number(at_least=0, at_most=1),
    )
    episode_retries: int = setting(
        0,
        "With agent=: how often an episode that failed is played again, with the same seed, so "
        "that a retry does not select what is drawn.",
        WholeNumber(at_least=0),
    )
    episode_concurrency: int = setting(
        64,
        "With agent=: episodes that are played at the same time at most; the others of a step "
        "wait. Memory for what they keep cached grows with it.",
        WholeNumber(at_least=1),
        may_change=True,
    )
    on_truncation: Literal["score", "mask"] | float = setting(
        "score",
        "With agent=: an episode that ran into max_turns, max_episode_tokens or the context: "
        '"score" takes its reward as it is, "mask" leaves it out, a number is added to its reward.',
        WordOrNumber("score", "mask"),
    )
    on_agent_error: Literal["exclude"] | float = setting(
        "exclude",
        'With agent=: an episode whose agent raised after an answer of the policy: "exclude" '
        "counts it as failed and leaves it out, a number trains it with that reward. Choose a "
        "number if the agent raises when the policy writes nonsense.",
        WordOrNumber("exclude"),
    )
    max_extra_groups: int = setting(
        0,
        "Groups that a step samples at most to replace those whose samples all got the same "
        "reward, which teach nothing (DAPO's dynamic sampling).",
        WholeNumber(at_least=0),
        verl=NotInVerl("verl's steps play the same number of groups"),
    )
    solved_rate: float = setting(
        1.0,
        "Share of its turns that a task takes whose samples all got the same reward, and one of at "
        "least solved_reward; other tasks take the rest. 1 asks all tasks equally often.",
        Number(above=0, at_most=1),
        verl=NotInVerl(NO_POOLS),
    )
    unsolved_rate: float = setting(
        1.0,
        "Share of its turns that a task takes whose samples all got the same reward below "
        "solved_reward. 1 asks all tasks equally often.",
        Number(above=0, at_most=1),
        verl=NotInVerl(NO_POOLS),
    )
    solved_reward: float = setting(
        1.0,
        "With solved_rate or unsolved_rate: reward from which a task counts as solved.",
        Number(),
        verl=NotInVerl(NO_POOLS),
    )
    overlong_buffer: int = setting(
        0,
        "Tokens before max_response_length over which a penalty for long answers rises (DAPO); 0 "
        "gives none. Not with agent=, where on_truncation handles long episodes.",
        WholeNumber(at_least=0),
        verl=VerlKeys((f"+{OVERLONG}.len", "+reward.reward_kwargs.max_resp_len"), written=False),
    )
    overlong_penalty: float = setting(
        1.0,
        "With overlong_buffer: what an answer of max_response_length tokens loses of its reward.",
        Number(above=0),
        verl=VerlKeys((f"+{OVERLONG}.penalty_factor",), written=False),
    )
    policy_models: Sequence[str] | None = setting(
        None,
        "With agent=: model names whose calls the policy answers, so that calls of other models "
        "go out; none means that it answers all.",
        _check_models,
    )
    backend: Literal["local", "verl"] = setting(
        "local",
        "Where the run takes place: in this process, or in verl's workers on Ray. The settings "
        "from here on are for verl.",
        OneOf(("local", "verl")),
    )
    nodes: int = setting(
        1,
        "Machines of the cluster that the run takes.",
        WholeNumber(at_least=1),
        verl=VerlKeys(("trainer.nnodes",), read_back=True),
    )
    gpus_per_node: int = setting(
        1,
        'GPUs of each machine; worker processes of each with device="cpu".',
        WholeNumber(at_least=1),
        verl=VerlKeys(("trainer.n_gpus_per_node",), read_back=True),
    )
    rollout: Literal["auto", "vllm", "sglang", "trtllm", "transformers"] = setting(
        "auto",
        'Engine that samples: "auto" means vLLM, or plain transformers with device="cpu".',
        OneOf(("auto", "vllm", "sglang", "trtllm", "transformers")),
        verl=VerlKeys(("actor_rollout_ref.rollout.name",), read_back=True, written=False),
    )
    tensor_parallel: int = setting(
        1,
        "GPUs that share one copy of the model while it samples.",
        WholeNumber(at_least=1),
        verl=VerlKeys(("actor_rollout_ref.rollout.tensor_model_parallel_size",)),
    )
    ray_address: str | None = setting(
        None,
        'Ray\'s job server, such as "http://head:8265"; none starts a Ray on this machine. Every '
        "node must see output_dir under the same path.",
        OrNone(Text("Ray's job server")),
        may_change=True,
    )
    verl_overrides: Mapping[str, object] = setting(
        dict,
        "Further keys of verl's configuration, as verl names them; they override ours.",
        _check_overrides,
    )
    environment_variables: Sequence[str] = setting(
        (),
        "Names of environment variables of this process that the workers get too, such as the key "
        "of a service that an agent calls; their values are in no file.",
        _check_variables,
        may_change=True,
    )
    verl_python: str | os.PathLike[str] | None = setting(
        None,
        "Python interpreter with verl installed; none means the current one.",
        OrNone(PathName("a Python interpreter")),
        may_change=True,
    )
    step_timeout_seconds: float = setting(
        3600.0,
        "Longest time between two steps in seconds, the start of the job included; then the job "
        "is stopped.",
        Number(above=0),
        may_change=True,
    )

    @property
    def has_pools(self) -> bool:
        """Whether solved or unsolved tasks are asked less often."""
        return self.solved_rate < 1 or self.unsolved_rate < 1

    @property
    def rollout_name(self) -> str:
        """Name of the sampling engine in verl's configuration."""
        if self.rollout != "auto":
            return self.rollout
        return "transformers" if self.device == "cpu" else "vllm"

    def __post_init__(self) -> None:
        AlgorithmConfig.__post_init__(self)
        object.__setattr__(self, "algorithm", VeRLAlgorithm(self.algorithm))
        ALGORITHMS[self.algorithm].check(self)
        _check_batch(self)
        _check_sampling(self)
        if self.backend == "verl":
            _check_for_verl(self)
        elif self.max_staleness:
            raise ConfigError(
                f"max_staleness={self.max_staleness} needs backend='verl'; use 0 here"
            )


def _check_batch(config: VeRLConfig) -> None:
    """Refuse a minibatch size that does not divide a step's samples, and suggest sizes that do."""
    samples = config.samples_per_step
    if config.minibatch_size and samples % config.minibatch_size:
        divisors = [size for size in range(1, samples + 1) if samples % size == 0]
        near = sorted(divisors, key=lambda size: abs(math.log(size / config.minibatch_size)))[:2]
        raise ConfigError(
            f"a step has batch_size={config.batch_size} prompts x group_size={config.group_size} = "
            f"{samples} samples, which minibatch_size={config.minibatch_size} does not divide; "
            f"use {' or '.join(str(size) for size in sorted(near))}, or 0 for all in one update"
        )


def _check_sampling(config: VeRLConfig) -> None:
    """Refuse settings of pools and of long answers that have no effect or cannot work."""
    if config.solved_reward != 1.0 and not config.has_pools:
        raise ConfigError(
            f"solved_reward={config.solved_reward:g} has no effect without pools; set "
            "solved_rate or unsolved_rate below 1"
        )
    if config.has_pools and config.group_size < 2:
        raise ConfigError(
            "solved_rate and unsolved_rate compare the samples of a group, and group_size="
            f"{config.group_size} makes none; use at least 2"
        )
    if config.max_extra_groups and config.group_size < 2:
        raise ConfigError(
            f"max_extra_groups={config.max_extra_groups} replaces groups without a difference in "
            f"reward, and group_size={config.group_size} makes none; use at least 2"
        )
    if config.overlong_penalty != 1.0 and not config.overlong_buffer:
        raise ConfigError(
            f"overlong_penalty={config.overlong_penalty:g} has no effect without overlong_buffer, "
            "the tokens over which it rises"
        )
    if config.overlong_buffer > config.max_response_length:
        raise ConfigError(
            f"overlong_buffer={config.overlong_buffer} must be at most max_response_length="
            f"{config.max_response_length}, whose last tokens it is"
        )


OURS: Mapping[str, str] = {
    "data.train_files": "the data set given to train()",
    "data.val_files": "eval_dataset=",
    "reward.custom_reward_function.path": "rewards=",
    "reward.custom_reward_function.name": "rewards=",
    "trainer.v1.trainer_mode": "max_staleness=",
    **{
        key: f"{declared.name}="
        for declared in fields(VeRLConfig)
        if isinstance(keys := declared.metadata.get("verl"), VerlKeys) and keys.read_back
        for key in keys.keys
    },
}
"""Keys of verl that the trainer reads back, and the argument or setting that sets each."""


def _check_for_verl(config: VeRLConfig) -> None:
    """Refuse settings that verl does not support, and impossible machines.

    Checks that need verl itself are in `cluster/inside/check.py`.

    Raises:
        ConfigError: names the setting, its value and what to do instead.
    """
    _check_place(config)
    for declared in fields(config):
        keys, value = declared.metadata.get("verl"), getattr(config, declared.name)
        if not isinstance(keys, NotInVerl):
            continue
        if value in keys.refused if keys.refused else value != declared.default:
            raise ConfigError(
                f"{declared.name}={value!r} has no counterpart in verl ({keys.reason})"
            )
    for key in config.verl_overrides:
        if key.lstrip("+") in OURS:
            raise ConfigError(f"verl_overrides cannot set {key!r}: {OURS[key.lstrip('+')]} does")
    if config.lora_alpha is not None and not float(config.lora_alpha).is_integer():
        raise ConfigError(
            f"lora_alpha={config.lora_alpha!r} must be a whole number for backend='verl', which "
            f"would take it as {int(config.lora_alpha)}; scale learning_rate or lora_rank instead"
        )
    ALGORITHMS[config.algorithm].verl_overrides(config)
    if config.minibatch_size % config.group_size:
        raise ConfigError(
            f"minibatch_size={config.minibatch_size} must be a multiple of group_size="
            f"{config.group_size} for backend='verl', whose updates take whole groups"
        )


def _check_place(config: VeRLConfig) -> None:
    """Refuse an impossible combination of machines and devices."""
    if config.device not in {"auto", "cuda", "cpu"}:
        raise ConfigError(
            f"device must be 'auto' or 'cuda' (GPUs), or 'cpu' (a rehearsal) for backend='verl', "
            f"got {config.device!r}"
        )
    if (config.rollout_name == "transformers") != (config.device == "cpu"):
        raise ConfigError(
            f"rollout={config.rollout!r} does not go with device={config.device!r}: a rehearsal "
            f"on 'cpu' samples with transformers, and only that"
        )
    if config.device == "cpu" and config.tensor_parallel > 1:
        raise ConfigError(
            f"tensor_parallel={config.tensor_parallel}: a rehearsal cannot split its model; use 1"
        )
    if config.ray_address is not None:
        if not config.ray_address.startswith(("http://", "https://")):
            raise ConfigError(
                "ray_address must be the URL of Ray's job server, such as 'http://head:8265', "
                f"got {config.ray_address!r}"
            )
        if config.output_dir is None:
            raise ConfigError(
                "ray_address needs output_dir=, a folder that every node sees under the same path"
            )
    elif config.nodes > 1 and config.device != "cpu":
        raise ConfigError(
            f"nodes={config.nodes} needs ray_address=, the job server of a Ray cluster; a Ray "
            "started here has this machine only"
        )
