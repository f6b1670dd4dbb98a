"""The settings of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from orbiter.train.checks import Boolean, Number, OrNone, setting, setting_like
from orbiter.train.engine.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig(EngineConfig):
    """The settings of supervised fine-tuning; a step is one update on `batch_size` items."""

    epochs: int = setting_like(EngineConfig, "epochs", 3, "Passes over the items.")
    learning_rate: float = setting_like(
        EngineConfig,
        "learning_rate",
        1e-4,
        "AdamW's step size, reached after warmup_steps updates of linear warm-up.",
    )
    max_response_length: int = setting_like(
        EngineConfig,
        "max_response_length",
        256,
        "Largest answer of generate() in tokens; imitated answers may be longer.",
    )
    min_reward: float | None = setting(
        None,
        "Imitate only items with at least this reward; none imitates all.",
        OrNone(Number()),
    )
    reward_weighted: bool = setting(
        False,
        "Weight each item by its reward, with mean 1 over the data set.",
        Boolean(),
    )
