"""The settings of training a reward model."""

from __future__ import annotations

from dataclasses import dataclass

from orbiter.train.checks import Number, setting, setting_like
from orbiter.train.engine.config import EngineConfig
from orbiter.train.errors import ConfigError
from orbiter.train.preference.config import PairConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelConfig(PairConfig):
    """The settings of training a reward model; a step is one update on `batch_size` pairs."""

    epochs: int = setting_like(EngineConfig, "epochs", 1, "Passes over the pairs.")
    batch_size: int = setting_like(EngineConfig, "batch_size", 8, "Pairs of one update.")
    margin_coef: float = setting(
        0.0,
        "Margin between the two scores that is asked for, as a multiple of the difference of the "
        "pair's rewards; 0 asks for none.",
        Number(at_least=0),
    )
    centering_coef: float = setting(
        0.0,
        "Weight of the squared sum of a pair's scores, which keeps scores near zero.",
        Number(at_least=0),
    )

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        default = type(self).__dataclass_fields__["max_response_length"].default
        if self.max_response_length != default:
            raise ConfigError(
                f"max_response_length={self.max_response_length} has no effect on a reward model, "
                "which samples nothing; leave it out"
            )
