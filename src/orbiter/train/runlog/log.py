"""A run's folder: its configuration, metrics and samples.

    run.json        the configuration, written once
    metrics.jsonl   one line per record: {"step": 3, "loss": 0.41, ...}
    samples.jsonl   one line per sample: {"step": 3, "prompt": ..., "completion": ..., ...}
    times.jsonl     one line per timing record: {"step": 3, "seconds": 1.2, ...}
    environment.json    where and when the run started (`environment.py`)

Each line ends with a checksum that continues the line before (`resume_journal.py`). Step numbers
never decrease, so a resumed run can cut off the steps that it is about to repeat. The first three
files are then byte for byte those of an uninterrupted run, which is why they contain no times. The
name is `run.json` because `config.json` belongs to a model, and both may be in the same folder.

There is no live display here: programs that show a run read the folder while it is written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import cast

from orbiter.train.contained import check_contained
from orbiter.train.errors import ConfigError, DataError, StateError, StorageError
from orbiter.train.redact import secrets_of_the_environment
from orbiter.train.resume_journal import JournalLine, ResumeJournal, differences, read_journal
from orbiter.train.runlog.environment import keep_environment
from orbiter.train.runlog.plain import NAMED, number, plain
from orbiter.train.runlog.trackers import Tracked, Tracker, Trackers
from orbiter.train.storage import Durability, write_file

RUN_FILE, METRICS_FILE, SAMPLES_FILE = "run.json", "metrics.jsonl", "samples.jsonl"
TIMES_FILE = "times.jsonl"


class RunLog:
    """The only writer of a run's folder; usable in a `with` block.

    Other processes may call `read_run` meanwhile. A kill loses no record whose call has returned.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, object] | None = None,
        *,
        resume_from: int | None = None,
        durability: Durability = "process",
        trackers: Iterable[str | Tracker] = (),
        environment: Mapping[str, object] | None = None,
    ) -> None:
        """Open or create the folder of the run that `config` describes; None keeps its config.

        With `resume_from`, the records of all later steps are cut off, because they will be written
        again. Without it, records are appended. Write a step's metrics before its checkpoint.
        `trackers` get a copy of every metric. `environment` is added to the facts about this
        machine that a new run's folder records.

        Raises:
            ConfigError: the folder contains a run with another configuration.
            DataError: `config` contains something that JSON cannot represent.
            StorageError: another process is writing this run, or the folder is not writable.
        """
        self.folder = Path(folder)
        self._secrets = secrets_of_the_environment()
        # Secrets of the environment are masked here, before anything reaches the disk.
        described = None if config is None else plain(config, "config", self._secrets)
        check_contained(self.folder, to_write=True)
        with contextlib.ExitStack() as opened:
            # The metrics' journal is opened first, since its lock protects the whole folder.
            metrics = ResumeJournal(self.folder / METRICS_FILE, durability=durability)
            opened.callback(metrics.close)
            _settle(self.folder / RUN_FILE, described)  # while holding the lock of the log above
            samples = ResumeJournal(self.folder / SAMPLES_FILE, durability=durability)
            opened.callback(samples.close)
            self._metrics = _Steps(metrics, resume_from)
            self._samples = _Steps(samples, resume_from)
            times = ResumeJournal(self.folder / TIMES_FILE, durability=durability)
            opened.callback(times.close)
            self._times = _Steps(times, resume_from)
            keep_environment(self.folder, environment or {})
            # Trackers start last: a run that cannot be opened must not appear at a service.
            run = Tracked(folder=self.folder, config=described or {})
            self._trackers = Trackers(trackers, run)
            opened.callback(self._trackers.finish)
            self._opened = opened.pop_all()

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Record the metrics of `step`; a metric that is None was not measured and is left out.

        NaN and infinities are kept, so that the log of a diverged run shows where it happened.

        Raises:
            DataError: a metric is not a number, or `step` is before the last one written.
        """
        self._write(self._metrics, step, metrics)

    def time(self, step: int, times: Mapping[str, float | None]) -> None:
        """Record timings of `step`, such as seconds or tokens per second, apart from the metrics.

        Raises:
            DataError: as for `write`.
        """
        self._write(self._times, step, times)

    def _write(self, log: _Steps, step: int, numbers: Mapping[str, float | None]) -> None:
        measured = {name: value for name, value in numbers.items() if value is not None}
        row = {name: number(f"metric {name!r} of step {step}", measured[name]) for name in measured}
        log.append(step, row)
        # A resumed run repeats steps, but a tracker has them already and would show them twice.
        if int(step) > log.tracked_until:
            self._trackers.write(int(step), measured)

    def sample(self, step: int, record: Mapping[str, object]) -> None:
        """Record a sample worth reading: a prompt, the answer and its reward.

        Raises:
            DataError: the record contains something that JSON cannot represent, or `step` is before
                the last one written.
        """
        self._samples.append(step, plain(record, f"sample of step {step}", self._secrets))

    def close(self) -> None:
        """Release the folder; later writes are refused."""
        self._opened.close()
        # Marked as closed, so that a late write is refused and not lost in a closed file.
        self._metrics.closed = self._samples.closed = self._times.closed = True

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Run:
    """The contents of a run's folder when it was read."""

    folder: Path
    config: Mapping[str, object]
    metrics: tuple[Mapping[str, float], ...]
    """The records in order, each with its "step"."""
    samples: tuple[Mapping[str, object], ...]
    """The samples in order, each with its "step"."""
    times: tuple[Mapping[str, float], ...] = ()
    """The timings in order, each record with its "step"."""

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) for each step at which the metric `name` was measured."""
        return [(int(row["step"]), row[name]) for row in self.metrics if name in row]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run's folder, which may still be growing; an incomplete last record is left out.

    Raises:
        StorageError: there is no run in `folder`, or a line of it is damaged.
    """
    path = Path(folder)
    check_contained(path)
    return Run(
        folder=path,
        config=read_config(path),
        metrics=read_numbers(path / METRICS_FILE),
        samples=tuple(
            row for _, row in _rows(path / SAMPLES_FILE, read_journal(path / SAMPLES_FILE))
        ),
        times=read_numbers(path / TIMES_FILE),
    )


def read_config(folder: str | os.PathLike[str]) -> Mapping[str, object]:
    """Read only the configuration of a run.

    Raises:
        StorageError: there is no run in `folder`, or its description is damaged.
    """
    path = Path(folder)
    check_contained(path)
    if not (path / RUN_FILE).is_file():
        raise StorageError(f"{path} holds no run: {RUN_FILE} is missing")
    return _config_in(path / RUN_FILE)


def read_numbers(path: str | os.PathLike[str]) -> tuple[Mapping[str, float], ...]:
    """Read only the metrics of a run, or only its timings; a missing file counts as empty.

    Raises:
        StorageError: a line is damaged.
    """
    path = Path(path)
    return tuple(_measured(path, line.number, row) for line, row in _rows(path, read_journal(path)))


def _measured(path: Path, line: int, row: Mapping[str, object]) -> Mapping[str, float]:
    """Return the record's numbers; NaN and infinities are stored by name."""
    numbers = {
        name: NAMED.get(value, value) if isinstance(value, str) else value
        for name, value in row.items()
    }
    for name, value in numbers.items():
        # JSON's true is a bool, which passes here as an int.
        if not isinstance(value, int | float):
            raise StorageError(f"{path}:{line} is not a record of a run: {name} is {value!r}")
    return cast("Mapping[str, float]", numbers)


class _Steps:
    """A log whose step numbers never decrease; `resume_from` drops all later records."""

    def __init__(self, log: ResumeJournal, resume_from: int | None) -> None:
        self.log, self.last, self.closed = log, 0, False
        self.tracked_until = 0
        """The last dropped step: trackers already have its values and those before it."""
        rows = _rows(log.path, log.replay())
        for line, row in rows:
            step = cast("int", row["step"])
            if resume_from is not None and step > resume_from:
                self.tracked_until = step
                # rows is the same iterator, so this reads the steps that are about to be cut.
                with contextlib.suppress(StorageError):  # a damaged line here is dropped too
                    self.tracked_until = max([step, *(int(str(r["step"])) for _, r in rows)])
                log.cut(line)
                return
            self.last = step

    def append(self, step: object, row: Mapping[str, object]) -> None:
        name = self.log.path.name
        if self.closed:
            raise StateError(f"{self.log.path} is closed; open the run's folder again to continue")
        if not isinstance(step, Integral) or int(step) < self.last:
            raise DataError(
                f"a step must be a whole number not below the last one in {name} ({self.last}), "
                f"got {step!r}; to do steps again, open the folder with resume_from="
            )
        if "step" in row:
            raise DataError(f"'step' is the name of the step itself in {name}; rename that entry")
        self.log.append(_json({"step": int(step), **row}))
        self.last = int(step)


def _settle(path: Path, config: Mapping[str, object] | None) -> None:
    """Write the configuration of a new run, or check that an existing run has the same one."""
    if not path.exists():
        # Atomic: the folder never holds half a description.
        write_file(path, _json({"format": 1, "config": config or {}}, indent=2) + b"\n")
        return
    recorded = _config_in(path)
    if config is None or recorded == config:
        return
    # By repr, so that 1 and 1.0 or "1" and 1 differ in the message.
    there, here = ({k: repr(v) for k, v in side.items()} for side in (recorded, config))
    changes = [
        f"{name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
        for name in sorted(differences(there, here))
    ]
    raise ConfigError(
        f"{path.parent} holds a run of another configuration: {'; '.join(changes)}. "
        "Choose a new folder, or the same configuration"
    )


def _config_in(path: Path) -> Mapping[str, object]:
    try:
        described = json.loads(path.read_bytes())
        return cast("Mapping[str, object]", dict(described["config"]))
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is not the description of a run: {error}") from error


def _rows(
    path: Path, lines: Iterable[JournalLine]
) -> Iterator[tuple[JournalLine, dict[str, object]]]:
    """Yield each complete record with its line."""
    for line in lines:
        try:
            row = json.loads(line.record)
            int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{path}:{line.number} is not a record of a run: {error}") from error
        yield line, row


def _json(value: Mapping[str, object], *, indent: int | None = None) -> bytes:
    # NaN is stored by name, so allow_nan=False only catches mistakes.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        return json.dumps(value, allow_nan=False, indent=indent).encode()
