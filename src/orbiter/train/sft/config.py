"""How a run by imitation goes."""

from __future__ import annotations

from dataclasses import dataclass

from orbiter.train.engine.config import EngineConfig
from orbiter.train.errors import ConfigError
from orbiter.train.trainer.config import number


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig(EngineConfig):
    """One run by imitation: a step is one update on `batch_size` items."""

    epochs: int = 3
    """Passes over the items."""
    batch_size: int = 8
    """Items an update. The last update of an epoch takes what is left."""
    learning_rate: float = 1e-4
    """AdamW's step size, after `warmup_steps` updates of linear warm-up."""
    eval_every: int | None = None
    """Updates between two validations on `eval_dataset`; None: none before the end."""
    max_response_length: int = 256
    """Tokens that `generate` may answer; what is imitated may be longer."""
    min_reward: float | None = None
    """Only items of at least this reward are imitated; None imitates all."""
    reward_weighted: bool = False
    """Let an item count in proportion to its reward, with mean 1 over the data set."""

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        if self.min_reward is not None:
            number("min_reward", self.min_reward)
        if not isinstance(self.reward_weighted, bool):
            raise ConfigError(
                f"reward_weighted must be True or False, got {self.reward_weighted!r}"
            )
