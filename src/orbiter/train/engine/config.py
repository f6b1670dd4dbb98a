"""The settings of every run on the local engine: model, arithmetic, and files kept on disk.

This file does not import torch, so a config can be created anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from orbiter.train.checks import (
    Boolean,
    Number,
    OneOf,
    OrNone,
    Text,
    WholeNumber,
    setting,
    setting_like,
)
from orbiter.train.errors import ConfigError
from orbiter.train.runlog.log import RUN_FILE, read_config
from orbiter.train.runlog.trackers import Tracker, check_trackers
from orbiter.train.trainer.config import NotInVerl, TrainConfig, VerlKeys

OnLongPrompt = Literal["error", "drop", "truncate-left"]
"""How a prompt that is too long is handled: stop the run, drop it, or keep its last tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(TrainConfig):
    """Settings of the model, its arithmetic, and the files that a run keeps on disk."""

    learning_rate: float = setting_like(
        TrainConfig,
        "learning_rate",
        1e-5,
        "AdamW's step size, reached after warmup_steps updates of linear warm-up.",
    )
    eval_every: int | None = setting_like(
        TrainConfig,
        "eval_every",
        None,
        "Updates between two validations on eval_dataset; none means only after the end.",
    )
    model: str = setting(
        "smollm2-135m",
        'A folder in Hugging Face\'s layout, a name on the hub, "smollm2-135m" or "tiny".',
        Text('a model: a folder, a hub name, "smollm2-135m" or "tiny"'),
        path="model",
        verl=VerlKeys(("actor_rollout_ref.model.path",), read_back=True, written=False),
    )
    trust_remote_code: bool = setting(
        False,
        "Run Python code that comes with the model, with all rights of your account. Read the code "
        "first; without this setting such a model is refused.",
        Boolean(),
        verl=NotInVerl("a model that needs its own code is not supported there"),
    )
    system_prompt: str | None = setting(
        None,
        "System prompt before every prompt; without one, an agent's instructions are used.",
        OrNone(Text()),
    )
    max_prompt_length: int | None = setting(
        None,
        "Largest prompt in tokens; none means the context length minus max_response_length.",
        OrNone(WholeNumber(at_least=1)),
        verl=VerlKeys(("data.max_prompt_length",), written=False),
    )
    on_long_prompt: OnLongPrompt = setting(
        "error",
        "What happens to a longer prompt; dropped and shortened ones are counted.",
        OneOf(("error", "drop", "truncate-left")),
    )
    max_response_length: int = setting(
        64,
        "Largest response in tokens, the end token included.",
        WholeNumber(at_least=1),
        verl=VerlKeys(("data.max_response_length",)),
    )
    lora_rank: int = setting(
        0,
        "Rank of the adapters that are trained instead of the weights; 0 trains every weight.",
        WholeNumber(at_least=0),
        verl=VerlKeys(("actor_rollout_ref.model.lora_rank",), written=False),
    )
    lora_alpha: float | None = setting(
        None,
        "The adapters are scaled by lora_alpha / lora_rank; none means 2 * lora_rank.",
        OrNone(Number(above=0)),
        verl=VerlKeys(("actor_rollout_ref.model.lora_alpha",), written=False),
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Arithmetic of the forward and backward pass; trained weights stay float32. auto takes "
        "bfloat16 if it is measured to be faster on this machine, else float32.",
        OneOf(("auto", "float32", "bfloat16")),
        verl=VerlKeys(("actor_rollout_ref.rollout.dtype",), written=False),
    )
    device: str = setting(
        "auto",
        '"cpu", "cuda", "cuda:1", "mps", or "auto" for the first accelerator found.',
        Text('a device such as "cpu", "cuda" or "auto"'),
        verl=VerlKeys(("trainer.device",), read_back=True, written=False),
    )
    lr_schedule: Literal["constant", "linear"] = setting(
        "constant",
        "After the warm-up the learning rate stays, or falls linearly to 0 at the last step.",
        OneOf(("constant", "linear")),
        verl=NotInVerl("verl's schedules are constant and cosine"),
    )
    max_seconds: float | None = setting(
        None,
        "The run ends after the step in which this process has run for this many seconds.",
        OrNone(Number(above=0)),
        may_change=True,
        verl=NotInVerl("verl has no time limit; lower epochs"),
    )
    max_grad_norm: float = setting(
        1.0,
        "A gradient longer than this is scaled down to it.",
        Number(above=0),
        verl=VerlKeys(("actor_rollout_ref.actor.grad_clip", "critic.grad_clip")),
    )
    weight_decay: float = setting(
        0.0,
        "AdamW's decoupled weight decay.",
        Number(at_least=0),
        verl=VerlKeys(("actor_rollout_ref.actor.optim.weight_decay", "critic.optim.weight_decay")),
    )
    micro_batch_tokens: int = setting(
        4096,
        "Tokens of one forward pass. Smaller saves memory through gradient accumulation and "
        "changes no result.",
        WholeNumber(at_least=1),
        verl=VerlKeys(
            (
                "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
                "critic.ppo_max_token_len_per_gpu",
            ),
            written=False,
        ),
    )
    save_every: int = setting(
        0,
        "Optimiser updates between two checkpoints in output_dir; 0 keeps none.",
        WholeNumber(at_least=0),
        may_change=True,
        verl=VerlKeys(("trainer.save_freq",), written=False),
    )
    keep_checkpoints: int = setting(
        2,
        "Number of newest checkpoints that stay on disk.",
        WholeNumber(at_least=1),
        may_change=True,
        verl=VerlKeys(("trainer.max_actor_ckpt_to_keep", "trainer.max_critic_ckpt_to_keep")),
    )
    resume: bool = setting(
        False,
        "Continue from the newest complete checkpoint in output_dir, or start a new run if it has "
        "no checkpoint; needs the same settings and data.",
        Boolean(),
        may_change=True,
        verl=VerlKeys(
            ("trainer.resume_mode",), values={True: "auto", False: "disable"}, read_back=True
        ),
    )
    progress: bool = setting(
        True,
        "Draw a progress bar on standard error if that is a terminal.",
        Boolean(),
        may_change=True,
    )
    trackers: Sequence[str | Tracker] = setting(
        (),
        'Services that also get every metric: "trackio", "wandb", "tensorboard", "mlflow", or a '
        "Tracker.",
        path="code",
        may_change=True,
    )

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        object.__setattr__(self, "trackers", check_trackers(self.trackers))
        if self.lora_alpha is not None and not self.lora_rank:
            raise ConfigError(
                f"lora_alpha={self.lora_alpha!r} scales adapters, and lora_rank=0 makes none; set "
                "lora_rank"
            )
        for name in ("save_every", "resume", "trackers"):
            if self.output_dir is None and getattr(self, name):
                raise ConfigError(f"{name} needs output_dir=, the folder that keeps the run")


def longest_prompt(config: EngineConfig, context: int) -> int:
    """Return the most tokens that a prompt may have, so that a response fits behind it.

    Raises:
        ConfigError: prompt and response do not fit into `context`, the model's context length.
    """
    room = context - config.max_response_length
    wanted = room if config.max_prompt_length is None else config.max_prompt_length
    if wanted > room or room < 1:
        raise ConfigError(
            f"max_prompt_length={wanted} + max_response_length={config.max_response_length} = "
            f"{wanted + config.max_response_length} tokens, and the context of {config.model} "
            f"holds {context}; lower one of them"
        )
    return wanted


def settings_of(config: EngineConfig) -> dict[str, object]:
    """Return the settings that affect what is learned, by name; a resumed run must keep them."""
    return {
        declared.name: getattr(config, declared.name)
        for declared in fields(config)
        if not declared.metadata.get("may_change")
    }


def recorded_dtype(config: EngineConfig) -> str | None:
    """Return the dtype that the run in `output_dir` started with, if "auto" resumes that run.

    On another machine or torch version, "auto" might choose differently for a new run.
    """
    if config.dtype != "auto" or not config.resume or config.output_dir is None:
        return None
    folder = Path(config.output_dir)
    recorded = read_config(folder).get("dtype") if (folder / RUN_FILE).exists() else None
    return str(recorded) if recorded in ("float32", "bfloat16") else None
