"""A run's folder: what it was asked to do, what it measured, what it said.

    run.json        the configuration, written once
    metrics.jsonl   a line a record: {"step": 3, "loss": 0.41, ...}
    samples.jsonl   a line a sample: {"step": 3, "prompt": ..., "completion": ..., ...}

Steps only go forward, so that a resumed run can cut off what it is about to do again: its files are
then equal, byte for byte, to those of a run that was never interrupted. For that they hold no time
of day. The name is `run.json` because `config.json` is a model's, and both may share a folder.

Secrets stay out: what stands under a key such as `api_key`, what looks like a known kind of token,
and what an environment variable such as OPENAI_API_KEY holds are written as "***".

Left out: anything live. Whoever wants a run on a screen reads the folder while it is written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import cast

from orbiter.train.errors import ConfigError, DataError, StateError, StorageError
from orbiter.train.storage import AppendLog, Durability, atomic_write, read_records

RUN_FILE, METRICS_FILE, SAMPLES_FILE = "run.json", "metrics.jsonl", "samples.jsonl"

MASK = "***"
"""What is written where a secret stood."""

_SECRET_KEY = re.compile(
    r"(?:^|_)(?:(?:api|access|secret|private|auth|signing)_?key"
    r"|(?:hf|hub|api|access|auth|bearer|refresh|session|github|gh|wandb|personal)_?token"
    r"|secret|password|passwd|passphrase|credential|authorization|cookie)s?$|^token$"
)
_SECRET_TEXT = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,})|(?<=Bearer )[\w.~+/=-]{16,}|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)"
)
_SHORTEST_SECRET = 8
"""Characters below which an environment variable holds no secret worth searching for."""


class RunLog:
    """The one writer of a run's folder; usable in a `with` block.

    Any other process may call `read_run` meanwhile. A kill loses no record whose call returned.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, object] | None = None,
        *,
        resume_from: int | None = None,
        durability: Durability = "process",
    ) -> None:
        """Open or make the folder of the run that `config` describes; None takes what is there.

        With `resume_from`, the records of all later steps are cut off: they will be made again.
        Without it, records go on after the last one. Write a step's metrics before its checkpoint.

        Raises:
            ConfigError: the folder holds a run of another configuration.
            DataError: `config` holds something that JSON cannot say.
            StorageError: another process writes this run, or the folder cannot be written.
        """
        self.folder = Path(folder)
        self._secrets = _secrets_of_the_environment()
        described = None if config is None else _plain(config, "config", self._secrets)
        with contextlib.ExitStack() as opened:
            metrics = AppendLog(self.folder / METRICS_FILE, durability=durability)
            opened.callback(metrics.close)
            _settle(self.folder / RUN_FILE, described)  # under the lock of the log just opened
            samples = AppendLog(self.folder / SAMPLES_FILE, durability=durability)
            opened.callback(samples.close)
            self._metrics = _Steps(metrics, resume_from)
            self._samples = _Steps(samples, resume_from)
            self._opened = opened.pop_all()

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Add what was measured at `step`; a metric that is None was not measured, and is left out.

        NaN and infinities are kept, so that a run that diverged shows where.

        Raises:
            DataError: a metric is no number, or `step` lies before the last one written.
        """
        measured = {name: value for name, value in metrics.items() if value is not None}
        row = {
            name: _number(f"metric {name!r} of step {step}", measured[name]) for name in measured
        }
        self._metrics.append(step, row)

    def sample(self, step: int, record: Mapping[str, object]) -> None:
        """Add something worth looking at: a prompt, what was answered, what that was worth.

        Raises:
            DataError: the record holds something that JSON cannot say, or `step` lies before the
                last one written.
        """
        self._samples.append(step, _plain(record, f"sample of step {step}", self._secrets))

    def close(self) -> None:
        """Let go of the folder; what is written afterwards is refused."""
        self._opened.close()
        self._metrics.closed = self._samples.closed = True

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Run:
    """What a run's folder held when it was read."""

    folder: Path
    config: Mapping[str, object]
    metrics: tuple[Mapping[str, float], ...]
    """The records in order, each with its "step"."""
    samples: tuple[Mapping[str, object], ...]
    """The samples in order, each with its "step"."""

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) wherever the metric `name` was measured."""
        return [(int(row["step"]), row[name]) for row in self.metrics if name in row]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run's folder; also while it is written: a record that is half there is left out.

    Raises:
        StorageError: there is no run in `folder`, or a line of it is damaged.
    """
    place = Path(folder)
    if not (place / RUN_FILE).is_file():
        raise StorageError(f"{place} holds no run: {RUN_FILE} is missing")
    metrics = tuple(
        {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
        for _, row in _rows(place / METRICS_FILE)
    )
    return Run(
        folder=place,
        config=_read_config(place / RUN_FILE),
        metrics=cast("tuple[Mapping[str, float], ...]", metrics),
        samples=tuple(row for _, row in _rows(place / SAMPLES_FILE)),
    )


class _Steps:
    """A log whose steps never go back; opened at `resume_from`, it forgets what came later."""

    def __init__(self, log: AppendLog, resume_from: int | None) -> None:
        self.log, self.last, self.closed = log, 0, False
        for start, row in _rows(log.path):
            step = cast("int", row["step"])
            if resume_from is not None and step > resume_from:
                os.truncate(log.path, start)
                return
            self.last = step

    def append(self, step: object, row: Mapping[str, object]) -> None:
        name = self.log.path.name
        if self.closed:
            raise StateError(f"{self.log.path} is closed; open the run's folder again to go on")
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
    """Write the configuration of a new run, or make sure that an old run is this very one."""
    if not path.exists():
        with atomic_write(path) as file:
            file.write(_json({"format": 1, "config": config or {}}, indent=2) + b"\n")
        return
    found = _read_config(path)
    if config is None or found == config:
        return
    differences = [
        f"{name} is {_shown(found, name)} there and {_shown(config, name)} here"
        for name in sorted(found.keys() | config.keys())
        if _shown(found, name) != _shown(config, name)
    ]
    raise ConfigError(
        f"{path.parent} holds a run of another configuration: {'; '.join(differences)}. "
        "Choose a new folder, or the same configuration"
    )


def _shown(config: Mapping[str, object], name: str) -> str:
    return repr(config[name]) if name in config else "absent"


def _read_config(path: Path) -> Mapping[str, object]:
    try:
        described = json.loads(path.read_bytes())
        return cast("Mapping[str, object]", dict(described["config"]))
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is not the description of a run: {error}") from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield each whole record with the byte at which its line starts."""
    start = 0
    for number, line in enumerate(read_records(path), 1):
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{path}:{number} is not a record of a run: {error}") from error
        yield start, row
        start += len(line) + 1


def _json(value: Mapping[str, object], *, indent: int | None = None) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        return json.dumps(value, allow_nan=False, indent=indent).encode()


def _number(what: str, value: object) -> float | str:
    """Return a plain number, or the name of one that JSON has no number for."""
    if not isinstance(value, Real):
        raise DataError(f"{what} must be a number, got {value!r}")
    number = int(value) if isinstance(value, Integral) else float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")


def _plain(value: Mapping[str, object], where: str, secrets: Sequence[str]) -> dict[str, object]:
    """Return the mapping in the words of JSON, without secrets; refuse what JSON cannot say."""
    plain: dict[str, object] = {}
    for key, entry in value.items():
        if not isinstance(key, str):
            raise DataError(f"{where} has the key {key!r}: keys must be text")
        inside = _plain_value(entry, f"{where}.{key}", secrets)
        plain[key] = MASK if _is_secret_key(key) and isinstance(inside, str | list) else inside
    return plain


def _plain_value(value: object, where: str, secrets: Sequence[str]) -> object:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        return _without_secrets(str(value), secrets)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise DataError(f"{where} must be finite, got {value!r}")
        return int(value) if isinstance(value, Integral) else float(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return _plain(value, where, secrets)
    if isinstance(value, list | tuple):
        return [_plain_value(each, f"{where}[{i}]", secrets) for i, each in enumerate(value)]
    raise DataError(
        f"{where} is of type {type(value).__name__}, which a run's folder cannot hold: "
        "give text, numbers, lists and mappings"
    )


def _is_secret_key(key: str) -> bool:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").lower()
    return _SECRET_KEY.search(snake) is not None


def _without_secrets(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return _SECRET_TEXT.sub(MASK, text)


def _secrets_of_the_environment() -> list[str]:
    """Return the values of variables that are named like secrets, the longest first."""
    values = {value for name, value in os.environ.items() if _is_secret_key(name.lower())}
    return sorted((v for v in values if len(v) >= _SHORTEST_SECRET), key=len, reverse=True)
