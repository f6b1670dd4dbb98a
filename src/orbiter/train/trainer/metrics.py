"""The metrics of a training or an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orbiter.train.checks import is_finite_number
from orbiter.train.errors import DataError
from orbiter.train.evaluation import Interval


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """The metrics of a training or an evaluation; None means not measured.

    `metrics["kl"]` finds a metric by name, in the fields and in `extra`. NaN and infinity are
    refused.
    """

    loss: float | None = None
    accuracy: float | None = None
    reward: float | None = None
    """Mean reward."""
    reward_interval: Interval | None = field(default=None, kw_only=True)
    """Confidence interval of the mean reward."""
    extra: Mapping[str, float] = field(default_factory=dict[str, float], kw_only=True, hash=False)
    """All other metrics by name."""
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What to know before trusting the numbers, such as a judge that nobody has calibrated."""

    def __post_init__(self) -> None:
        # A copy, since the caller may change its dict after the check.
        object.__setattr__(self, "extra", dict(self.extra))
        named = {"loss": self.loss, "accuracy": self.accuracy, "reward": self.reward}
        for name in self.extra:
            if name in {*TrainMetrics.__dataclass_fields__, "reward_low", "reward_high"}:
                raise DataError(f"{name!r} is taken: it cannot be the name of an extra metric")
        for name, value in {**named, **self.extra}.items():
            if not is_finite_number(value) and not (value is None and name in named):
                raise DataError(f"metric {name!r} must be a finite number, got {value!r}")

    def measured(self) -> dict[str, float]:
        """Return all measured metrics as a flat dict: `to_dict` without the None values."""
        return {name: value for name, value in self.to_dict().items() if value is not None}

    def to_dict(self) -> dict[str, float | None]:
        """Return all metrics as a flat dict, with `reward_low` and `reward_high`."""
        metrics: dict[str, float | None] = {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "reward": self.reward,
        }
        if self.reward_interval is not None:
            _, metrics["reward_low"], metrics["reward_high"], _ = self.reward_interval
        return {**metrics, **self.extra}

    def __getitem__(self, name: str) -> float:
        measured = self.measured()
        if name not in measured:
            were = ", ".join(measured) or "none"
            raise KeyError(f"{name!r} was not measured; these were: {were}")
        return measured[name]
