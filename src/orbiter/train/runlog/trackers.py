"""Send a run's metrics to experiment trackers such as Weights & Biases.

The run's folder always has every metric; a tracker gets a copy. A tracker is used only if it is
named in the config. If it fails to start, the run ends before its first step; if it fails later, it
is dropped with a warning, because hours of training are worth more than a curve. Samples and files
are not sent; they stay in the folder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from orbiter.train.errors import CallbackError, ConfigError, boundary, did_you_mean

log = logging.getLogger(__name__)

PROJECT = "orbiter-train"
"""The project name for runs, unless the tracker's own settings give another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """The run that a tracker follows."""

    folder: Path
    config: Mapping[str, object]
    """Its settings, without secrets."""

    @property
    def name(self) -> str:
        """The name of the run, which is its folder's name."""
        return self.folder.resolve().name

    @property
    def id(self) -> str:
        """Identifies the run on resume: always the same for the same folder."""
        return hashlib.blake2b(str(self.folder.resolve()).encode(), digest_size=8).hexdigest()


@runtime_checkable
class Tracker(Protocol):
    """A tracker of runs; implement these three methods to support another service."""

    def start(self, run: Tracked) -> None:
        """Start the run, or continue the one with this `run.id`."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; a resumed run passes every step only once."""

    def finish(self) -> None:
        """Send what is left; called once, however the run ended."""


KNOWN = {
    "trackio": "Trackio",
    "wandb": "Wandb",
    "tensorboard": "TensorBoard",
    "mlflow": "Mlflow",
}
"""The names that a config may use, and their classes in `trackers_known`."""


def check_trackers(wanted: object) -> tuple[str | Tracker, ...]:
    """Return the trackers of a config, each a known name or a tracker object.

    Raises:
        ConfigError: an entry is neither.
    """
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise ConfigError(f'trackers must be a list such as ["wandb"], got {wanted!r}')
    given: tuple[object, ...] = tuple(wanted)
    for each in given:
        if isinstance(each, str) and each not in KNOWN:
            listed = ", ".join(KNOWN)
            raise ConfigError(
                f"trackers must be of {listed}, got {each!r}{did_you_mean(each, KNOWN)}"
            )
        if not isinstance(each, str | Tracker) or isinstance(each, type):
            raise ConfigError(
                f"trackers must be names, or objects with start, write and finish, got {each!r:.80}"
            )
    return cast("tuple[str | Tracker, ...]", given)


class Trackers:
    """The started trackers of one run; their later failures cannot end the run."""

    def __init__(self, wanted: Iterable[str | Tracker], run: Tracked) -> None:
        """Start them in order.

        Raises:
            MissingExtraError: one needs a package that is not installed.
            CallbackError: one could not start; those already started are finished.
        """
        self._active: list[tuple[str, Tracker]] = []
        with ExitStack() as started:
            # Undone by `pop_all` once all of them run.
            started.callback(self.finish)
            for each in check_trackers(wanted):
                name, tracker = _named(each)
                with boundary(f"tracker {name!r}"):
                    tracker.start(run)
                self._active.append((name, tracker))
            started.pop_all()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass the metrics to every tracker; one that fails is closed and dropped."""
        for entry in list(self._active):
            name, tracker = entry
            try:
                with boundary(f"tracker {name!r}"):
                    tracker.write(step, metrics)
            except CallbackError as error:
                self._active.remove(entry)
                log.warning("%s; the run continues without it, its folder has every metric", error)
                _finish(name, tracker)

    def finish(self) -> None:
        """Finish every tracker, the last one first."""
        while self._active:
            _finish(*self._active.pop())


def _finish(name: str, tracker: Tracker) -> None:
    """Close one tracker; a failure is only a warning."""
    try:
        with boundary(f"tracker {name!r}"):
            tracker.finish()
    except CallbackError as error:
        log.warning("%s while it was closed; the run's folder has every metric", error)


def _named(each: str | Tracker) -> tuple[str, Tracker]:
    if not isinstance(each, str):
        return type(each).__name__, each
    known = import_module("orbiter.train.runlog.trackers_known")
    return each, getattr(known, KNOWN[each])()
