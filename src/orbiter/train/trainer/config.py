"""The settings that every trainer shares, and their mapping to verl's configuration.

Settings of models, devices and algorithms are declared with the trainers that use them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from orbiter.train.checks import Number, OrNone, PathName, WholeNumber, check_fields, setting


@dataclass(frozen=True, slots=True)
class VerlKeys:
    """The keys of verl's configuration that a field sets; declared as the field's `verl=`."""

    keys: tuple[str, ...]
    values: Mapping[object, object] | None = None
    """Maps our values to verl's; None means that verl uses the same values."""
    off: object = None
    """verl's value for "off", used if ours is None or 0; None passes our value on."""
    read_back: bool = False
    """Whether the trainer reads the value back, so that `verl_overrides` must not change it."""
    written: bool = True
    """False if the value also depends on other fields and `verl/cluster/overrides.py` computes
    it."""


@dataclass(frozen=True, slots=True)
class NotInVerl:
    """Marks a field, or some of its values, that verl does not support; the field's `verl=`."""

    reason: str
    refused: tuple[object, ...] = ()
    """The values that are refused; empty means every value except the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The settings that every trainer shares; an invalid value raises an error that names it.

    A subclass with `slots=True` and its own `__post_init__` calls
    `TrainConfig.__post_init__(self)`: `super()` without arguments does not work there.
    """

    epochs: int = setting(
        1,
        "Passes over the data.",
        WholeNumber(at_least=1),
        verl=VerlKeys(("trainer.total_epochs",), read_back=True),
    )
    batch_size: int = setting(
        8,
        "Items that one update learns from.",
        WholeNumber(at_least=1),
        verl=VerlKeys(("data.train_batch_size",), read_back=True),
    )
    learning_rate: float = setting(
        1e-5,
        "The largest step size, reached after the warm-up.",
        Number(above=0),
        verl=VerlKeys(("actor_rollout_ref.actor.optim.lr", "critic.optim.lr")),
    )
    warmup_steps: int = setting(
        0,
        "Updates over which the learning rate rises from 0.",
        WholeNumber(at_least=0),
        verl=VerlKeys(
            (
                "actor_rollout_ref.actor.optim.lr_warmup_steps",
                "critic.optim.lr_warmup_steps",
            ),
            off=-1,
        ),
    )
    eval_every: int | None = setting(
        None,
        "Updates between two evaluations during training; none means only after the end.",
        OrNone(WholeNumber(at_least=1)),
        verl=VerlKeys(("trainer.test_freq",), off=-1),
    )
    seed: int = setting(
        0,
        "Seed of every random choice.",
        WholeNumber(at_least=0),
        verl=VerlKeys(
            (
                "data.seed",
                "actor_rollout_ref.actor.data_loader_seed",
                "actor_rollout_ref.rollout.seed",
                "critic.data_loader_seed",
            )
        ),
    )
    output_dir: str | os.PathLike[str] | None = setting(
        None,
        "Folder for the run's log and the trained weights; none writes nothing.",
        OrNone(PathName("a folder")),
        path="file",
        may_change=True,
        verl=VerlKeys(
            ("trainer.default_local_dir", "trainer.rollout_data_dir"),
            read_back=True,
            written=False,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


def whole(name: str, value: object, *, at_least: int) -> None:
    """Raise unless a setting is an int of at least `at_least`; see `checks.WholeNumber`."""
    WholeNumber(at_least=at_least)(name, value)


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raise unless a setting is a finite number within its limits; see `checks.Number`."""
    Number(above=above, at_least=at_least, at_most=at_most)(name, value)
