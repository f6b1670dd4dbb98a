"""What every run on the local engine needs to know, whether it imitates or is rewarded.

Left out: the model itself. This file loads no torch, so that a config can be made anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from orbiter.train.errors import ConfigError
from orbiter.train.runlog.trackers import Tracker, check_trackers
from orbiter.train.trainer.config import TrainConfig, number, whole

OnLongPrompt = Literal["error", "drop", "truncate-left"]
"""What becomes of a prompt that does not fit: stop the run; leave it out; keep its last tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(TrainConfig):
    """A model, its arithmetic, and what is kept of the run on disk."""

    model: str = "smollm2-135m"
    """A folder in Hugging Face's layout, a hub name, "smollm2-135m" or "tiny"."""
    system_prompt: str | None = None
    """Put before every prompt; an agent's instructions take its place when it is absent."""
    max_prompt_length: int | None = None
    """Tokens; absent means all that the model's context leaves beside the response."""
    on_long_prompt: OnLongPrompt = "error"
    """What becomes of a prompt longer than that; dropped and shortened ones are counted."""
    max_response_length: int = 64
    """Tokens, the end token included."""
    lora_rank: int = 0
    """Rank of the adapters to train in place of the weights; 0 trains every weight."""
    lora_alpha: float | None = None
    """Scale of the adapters is lora_alpha / lora_rank; absent means 2 · lora_rank."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward and backward pass; the weights being trained stay float32. "auto"
    takes bfloat16 where it is measured to be faster on this machine, and float32 elsewhere."""
    device: str = "auto"
    """ "cpu", "cuda", "cuda:1", "mps", or "auto" for the first accelerator there is."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up the learning rate stays, or falls in a line to 0 at the last step."""
    max_seconds: float | None = None
    """The run ends with the step that passes this much time in the present process."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm where it is longer."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay."""
    micro_batch_tokens: int = 4096
    """Tokens a forward pass may hold; smaller saves memory by accumulating gradients, and changes
    no result."""
    save_every: int = 0
    """Optimiser updates between two checkpoints in `output_dir`; 0 keeps none."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    resume: bool = False
    """Go on from the newest whole checkpoint in `output_dir`, or from the start where there is
    none yet; the same settings and data are needed."""
    progress: bool = True
    """Draw a progress bar on standard error when that is a terminal."""
    trackers: Sequence[str | Tracker] = ()
    """Who else gets every metric: "trackio", "wandb", "tensorboard", "mlflow", or a `Tracker`."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if not self.model:
            raise ConfigError('model must name one: a folder, a hub name, "smollm2-135m" or "tiny"')
        one_of("on_long_prompt", self.on_long_prompt, ("error", "drop", "truncate-left"))
        one_of("lr_schedule", self.lr_schedule, ("constant", "linear"))
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        for name in ("max_response_length", "micro_batch_tokens", "keep_checkpoints"):
            whole(name, getattr(self, name), at_least=1)
        for name in ("lora_rank", "save_every"):
            whole(name, getattr(self, name), at_least=0)
        for name in ("resume", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}")
        number("max_grad_norm", self.max_grad_norm, above=0)
        number("weight_decay", self.weight_decay, at_least=0)
        object.__setattr__(self, "trackers", check_trackers(self.trackers))
        self._check_optional()

    def _check_optional(self) -> None:
        if self.max_prompt_length is not None:
            whole("max_prompt_length", self.max_prompt_length, at_least=1)
        for name in ("lora_alpha", "max_seconds"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), above=0)
        if self.lora_alpha is not None and not self.lora_rank:
            raise ConfigError("lora_alpha scales adapters; give lora_rank=, which makes them")
        for knob in ("save_every", "resume", "trackers"):
            if self.output_dir is None and getattr(self, knob):
                raise ConfigError(f"{knob} needs output_dir=, the folder that keeps the run")


NOT_SETTINGS = (
    *("resume", "progress", "output_dir", "save_every", "keep_checkpoints", "max_seconds"),
    "trackers",
)
"""Fields of a config that say nothing about what is learned: a resumed run may change them."""


def settings_of(config: EngineConfig) -> dict[str, object]:
    """Return what decides what is learned, by name."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_SETTINGS}


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is none of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{name} must be one of {listed}, got {value!r}")
