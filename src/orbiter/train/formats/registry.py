"""The table of formats; detects, reads, writes, converts and checks files of any of them.

A format's module is imported when it is first needed. Not here: the formats themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from typing_extensions import override

from orbiter.train.errors import ConfigError, DataError, StorageError, did_you_mean
from orbiter.train.formats.format import HEAD, ExportReport, Format, Reader
from orbiter.train.json_files.source import OnError, Skipped, Source
from orbiter.train.trajectory.item import TrajectoryItem

PathLike = str | os.PathLike[str]

_HOMES: Mapping[str, tuple[str, str]] = {
    "jsonl": ("own", "JSONL"),
    "json": ("own", "JSON"),
    "csv": ("own", "CSV"),
    "journal": ("own", "JOURNAL"),
    "parquet": ("parquet", "FORMAT"),
    "datasets": ("hf_datasets", "FORMAT"),
    "openai-chat": ("openai_chat", "FORMAT"),
    "openai-dpo": ("openai_dpo", "FORMAT"),
    "trl-messages": ("trl", "MESSAGES"),
    "trl-prompt-completion": ("trl", "PROMPT_COMPLETION"),
    "trl-preference": ("trl_preference", "PREFERENCE"),
    "trl-unpaired": ("trl_preference", "UNPAIRED"),
    "sharegpt": ("sharegpt", "FORMAT"),
    "alpaca": ("alpaca", "FORMAT"),
    "verl": ("verl_rows", "FORMAT"),
    "atif": ("atif", "FORMAT"),
    "otel": ("traces", "OTEL"),
    "langfuse": ("traces", "LANGFUSE"),
    "langsmith": ("traces", "LANGSMITH"),
    "minari": ("minari", "FORMAT"),
    "claude-code": ("sessions.claude_code", "FORMAT"),
    "codex": ("sessions.codex", "FORMAT"),
    "gemini-cli": ("sessions.gemini_cli", "FORMAT"),
    "opencode": ("sessions.opencode", "FORMAT"),
    "pi": ("sessions.pi", "FORMAT"),
    "hermes": ("sessions.hermes", "FORMAT"),
}
"""For each format, the module of this package and the variable in it."""

NAMES = tuple(_HOMES)
"""The names of all formats."""

_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".journal": "journal",
}
"""The format to write if none is given: our own record, in the form that the suffix names."""


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion read, wrote and left out."""

    source: str
    """The name of the format that was read."""
    target: str
    """The name of the format that was written."""
    export: ExportReport
    """What was written, and what the target format cannot store."""
    skipped: Sequence[Skipped] = ()
    """Bad records that were left out, with `on_error="skip"`."""
    notes: Sequence[str] = ()
    """What was left out although nothing is wrong with it, such as records of unknown types."""

    def __str__(self) -> str:
        lines = [f"{self.source} to {self.target}: {self.export}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} bad records skipped; the first: {self.skipped[0]}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a file contains and what is wrong with it."""

    path: str
    format: str
    """The name of the format."""
    items: int
    """The number of items that could be read."""
    episodes: int
    with_reward: int
    """Items whose reward is known."""
    problems: Sequence[Skipped]
    """Each problem with its file and line."""
    notes: Sequence[str] = ()
    """What was left out although nothing is wrong with it, such as records of unknown types."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        summary = (
            f"{self.path}: {self.format}, {self.items} items in {self.episodes} episodes, "
            f"{self.with_reward} with a reward"
        )
        return "\n".join(
            [f"{summary}; {len(self.problems)} problems", *map(str, self.problems), *self.notes]
        )


def format_of(name: str) -> Format:
    """Return a format by its name.

    Raises:
        ConfigError: there is no format of that name; the message lists all names.
    """
    if name not in _HOMES:
        raise ConfigError(
            f"there is no format {name!r}{did_you_mean(name, NAMES)}; formats: {', '.join(NAMES)}"
        )
    module, attribute = _HOMES[name]
    return cast("Format", getattr(import_module(f"orbiter.train.formats.{module}"), attribute))


def detect(path: PathLike) -> Format:
    """Return the format of a file or folder, judged by its content.

    Raises:
        DataError: no format recognises it; the message shows how it begins.
        StorageError: it cannot be read.
    """
    target = Path(path)
    head = _head(target)
    # All are asked, and the most confident one wins. On a tie it is the first of the table, which
    # begins with our own record.
    sure = {name: format_of(name).detect(head, target) for name in NAMES}
    best = max(sure, key=lambda name: sure[name])
    if not sure[best]:
        begins = "it is a folder" if target.is_dir() else f"it begins with {head[:60]!r}"
        raise DataError(
            f"{target}:1: cannot tell its format: {begins}; name it, one of "
            f"{', '.join(_with_suffix(target) or NAMES)}"
        )
    return format_of(best)


def read(
    path: PathLike,
    format: str | None = None,
    *,
    on_error: OnError = "raise",
    skipped: list[Skipped] | None = None,
    redact: bool = True,
) -> Iterator[TrajectoryItem]:
    """Yield the items of a file of any readable format, in constant memory.

    Args:
        path: The file; a folder for some formats.
        format: The name of the format; None means detect it.
        on_error: "raise" stops at the first bad record; "skip" leaves it out.
        skipped: Gets the records that were left out.
        redact: Whether to mask secrets, e-mail addresses and home paths in the session logs of
            coding agents; other formats are read as they are.

    Raises:
        DataError: a record is wrong, or the format is unknown; the message names file and line.
        ConfigError: there is no format of that name, or it is only written.
        StorageError: the file cannot be read.
    """
    kind = format_of(format) if format is not None else detect(path)
    source = Source(path, on_error, "error", skipped if skipped is not None else [], redact=redact)
    return _reader(kind)(source)


def write(
    items: Iterable[TrajectoryItem],
    path: PathLike,
    format: str | None = None,
) -> ExportReport:
    """Write items to a file atomically, and report what the format could not store.

    Args:
        items: A data set, or any items; episodes become conversations if the format has them.
        path: The file, or the folder for formats that write one.
        format: The name of the format; None means our own record, in the form that the suffix
            names.

    Raises:
        ConfigError: there is no format of that name, it cannot be written, or the suffix names
            none.
        DataError: an item cannot be written in this format.
        StorageError: the file cannot be written.
    """
    return _writer(Path(path), format)(items, Path(path))


def check_target(path: PathLike, format: str | None = None) -> None:
    """Check that `write` has a format for the file.

    Raises:
        ConfigError: there is no format of that name, it cannot be written, or the suffix names
            none.
    """
    _writer(Path(path), format)


def _writer(
    target: Path, format: str | None
) -> Callable[[Iterable[TrajectoryItem], Path], ExportReport]:
    name = format if format is not None else _BY_SUFFIX.get(target.suffix)
    if name is None:
        raise ConfigError(
            f"the suffix of {target} names no format ({', '.join(_BY_SUFFIX)}); give one of "
            f"{', '.join(_with_suffix(target) or NAMES)}"
        )
    kind = format_of(name)
    if kind.write is None:
        raise ConfigError(f"format {name!r} is only read, not written")
    return kind.write


def convert(
    in_path: PathLike,
    out_path: PathLike,
    *,
    from_format: str | None = None,
    to_format: str | None = None,
    on_error: OnError = "raise",
    redact: bool = True,
    on_count: Callable[[int], None] | None = None,
) -> ConvertReport:
    """Read a file in one format and write it in another.

    Args:
        in_path: The file to read.
        out_path: The file to write; not the same as `in_path`.
        from_format: The name of the format to read; None means detect it.
        to_format: The name of the format to write; None means the one that the suffix names.
        on_error: What to do with a bad record: "raise" stops, "skip" leaves it out and reports it.
        redact: As for `read`.
        on_count: Called after each item with the number of items read so far, to show progress.

    Raises:
        DataError: a record is wrong, or the file has no records; the message names file and line.
        ConfigError: a name is unknown, or a format cannot be read or written.
        StorageError: a file cannot be read or written.
    """
    # A conversion may lose fields, so it must not replace the only copy.
    if Path(in_path).resolve() == Path(out_path).resolve():
        raise ConfigError(f"{out_path} is the file to read; write to another path")
    source = format_of(from_format) if from_format is not None else detect(in_path)
    skipped: list[Skipped] = []
    opened = _Reported(in_path, on_error, "error", skipped, redact=redact)
    items = counted(_reader(source)(opened), on_count)
    # Before the target is created: a file without items must not replace it by an empty one.
    # `_with_first` puts it back.
    first = next(items, None)
    if first is None:
        raise DataError(f"{os.fspath(in_path)}:1: {_nothing(skipped)}")
    export = write(_with_first(first, items), out_path, to_format)
    target = to_format if to_format is not None else _BY_SUFFIX[Path(out_path).suffix]
    return ConvertReport(source.name, target, export, skipped, opened.notes)


def check(
    path: PathLike, format: str | None = None, *, on_count: Callable[[int], None] | None = None
) -> CheckReport:
    """Read a whole file and report its content and every problem, without changing anything.

    `on_count` is called after each item with the number of items read so far, to show progress.

    Raises:
        DataError: no format recognises the file.
        ConfigError: there is no format of that name, or it is only written.
        StorageError: the file cannot be read.
    """
    kind = format_of(format) if format is not None else detect(path)
    problems: list[Skipped] = []
    source = _Noting(path, "skip", "error", problems)
    items = with_reward = 0
    episodes: set[object] = set()
    try:
        for item in counted(_reader(kind)(source), on_count):
            # An item without an episode is one by itself; its number cannot equal a text.
            episodes.add(items if item.episode_id is None else item.episode_id)
            with_reward += item.reward is not None
            items += 1
    except DataError as error:
        # A format that cannot continue raises although problems are only noted.
        problems.append(_skipped_from_error(os.fspath(path), str(error)))
    if not items and not problems:
        problems.append(Skipped(os.fspath(path), 1, _nothing(problems)))
    return CheckReport(
        os.fspath(path), kind.name, items, len(episodes), with_reward, problems, source.notes
    )


def counted(
    items: Iterable[TrajectoryItem], on_count: Callable[[int], None] | None
) -> Iterator[TrajectoryItem]:
    """Yield the items, and call `on_count` with the number of items so far."""
    for number, item in enumerate(items, 1):
        if on_count is not None:
            on_count(number)
        yield item


class _Reported(Source):
    """A file with a report: what was left out goes there, not into the log."""

    @override
    def note(self, text: str) -> None:
        """Note what was left out."""
        self.notes.append(text)


class _Noting(_Reported):
    """A file that is being checked: problems go into the report as well."""

    @override
    def refuse(self, line: int, reason: str, cause: Exception | None = None) -> None:
        """Note a bad record."""
        self.skipped.append(Skipped(self.path, line, reason))


def _with_suffix(path: Path) -> list[str]:
    """Return the formats whose files have this suffix; for a folder, those that are folders."""
    suffixes = {name: format_of(name).suffixes for name in NAMES}
    if path.is_dir():
        return [name for name in NAMES if not suffixes[name]]
    return [name for name in NAMES if path.suffix.lower() in suffixes[name]]


def _reader(kind: Format) -> Reader:
    if kind.read is None:
        raise ConfigError(f"format {kind.name!r} is only written, not read")
    return kind.read


def _head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _with_first(first: TrajectoryItem, rest: Iterator[TrajectoryItem]) -> Iterator[TrajectoryItem]:
    yield first
    yield from rest


def _nothing(skipped: Sequence[Skipped]) -> str:
    return (
        f"no item could be read; the first problem: {skipped[0]}" if skipped else "holds no items"
    )


def _skipped_from_error(path: str, message: str) -> Skipped:
    """Split an error that ended the reading into file, line and reason."""
    # Paths may contain colons, so the known path is removed before the line is looked for.
    line, mark, reason = message.removeprefix(f"{path}:").partition(": ")
    if mark and line.isdigit():
        return Skipped(path, int(line), reason)
    return Skipped(path, 1, message)
