"""Turns an agent's session reader into a format that reads one file or a folder, with redaction.

Not here: the records of a particular agent, and the conversion to items (`log.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from orbiter.train.errors import DataError
from orbiter.train.formats.format import HEAD, Format
from orbiter.train.formats.sessions.log import LoggedSession, items_of_session
from orbiter.train.json_files.fields import shown
from orbiter.train.json_files.records import Record, head_objects, read_records
from orbiter.train.json_files.source import Source
from orbiter.train.json_files.walk import objects_in
from orbiter.train.tracing.times import time_of
from orbiter.train.trajectory import TrajectoryItem

LOOKED_AT = 2_000
"""The number of entries of a folder among which detection looks for logs."""
HEADS = 20
"""The number of logs that detection looks into."""


@dataclass(slots=True)
class Tally:
    """Counts what is left out of the logs that are read in one run."""

    known: Counter[str] = field(default_factory=Counter[str])
    """Records of types that do not belong to a conversation, by type."""
    unknown: Counter[str] = field(default_factory=Counter[str])
    """Records of types that this package does not know, by type."""
    remarks: Counter[str] = field(default_factory=Counter[str])
    """Other remarks for the report."""

    def report(self, source: Source) -> None:
        """Add what was counted to the notes of the source."""
        for counter, what in (
            (self.unknown, "left out records of unknown types"),
            (self.known, "left out records that are not part of a conversation"),
        ):
            if counter:
                names = ", ".join(f"{name} ({count})" for name, count in sorted(counter.items()))
                source.note(f"{what}: {names}")
        for remark, count in sorted(self.remarks.items()):
            source.note(f"{remark} ({count})")


Sessions = Callable[[Sequence[Source], Tally], Iterator[LoggedSession]]
"""Yields the sessions in files. A bad record is refused with its file and line."""


def session_format(
    name: str,
    *,
    about: str,
    patterns: Sequence[str],
    sessions: Sessions,
    claims: Callable[[list[dict[str, Any]]], float],
    survives: Iterable[str] = (),
) -> Format:
    """Return the format of an agent's logs.

    Args:
        name: The name of the format.
        about: The agent and the versions whose logs are known.
        patterns: The names of log files in a folder, such as "*.jsonl".
        sessions: Reads the sessions in files.
        claims: The confidence, from 0 to 1, that a file with these first objects is such a log.
        survives: The fields that this agent's logs fill besides those that all of them do.
    """

    def detect(head: bytes, path: Path) -> float:
        if path.is_dir():
            return max(
                (
                    claims(head_objects(_head(file)))
                    for file in islice(_files(path, patterns, LOOKED_AT), HEADS)
                ),
                default=0.0,
            )
        return claims(head_objects(head))

    def read(source: Source) -> Iterator[TrajectoryItem]:
        return _read(source, patterns, sessions)

    return Format(
        name=name,
        about=about,
        suffixes=tuple(dict.fromkeys(Path(pattern).suffix for pattern in patterns)),
        survives=FILLED | frozenset(survives),
        detect=detect,
        read=read,
    )


def records_of(source: Source, tally: Tally) -> Iterator[Record]:
    """Yield the records of a file of JSON lines; an empty file is counted."""
    if not _is_empty(source, tally):
        yield from read_records(source)


def objects_of(source: Source, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their lines, from a sequence or an array."""
    if not _is_empty(source, tally):
        yield from objects_in(source)


def seconds_of(time: object) -> float | None:
    """Return an ISO time, or milliseconds since 1970, in seconds since 1970.

    Raises:
        DataError: it is not a time.
    """
    if isinstance(time, int | float) and not isinstance(time, bool):
        return time / 1e3 if time > _MILLISECONDS else float(time)
    return time_of(time)


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON object; an empty one if it is anything else."""
    return value if isinstance(value, dict) else {}


def kind_of(row: Mapping[str, Any], name: str = "type") -> str | None:
    """Return the word in a field that says what a record is, or None if the field is missing.

    Anything that is not a word is returned as its text, so that it can be counted as unknown.
    """
    value = row.get(name)
    return value if value is None or isinstance(value, str) else str(value)


def array_in(row: Mapping[str, Any], name: str) -> list[Any]:
    """Return the list in a field; an empty one if the field is missing or null.

    Raises:
        DataError: it holds anything else.
    """
    value = row.get(name)
    if value is not None and not isinstance(value, list):
        raise DataError(f"field {name!r}: expected a list, got {shown(value)}")
    return value or []


def _read(source: Source, patterns: Sequence[str], sessions: Sessions) -> Iterator[TrajectoryItem]:
    path, tally, seen = Path(source.path), Tally(), set[str]()
    # A file that was named by the user is read whatever it is called.
    files = _files(path, patterns) if path.is_dir() else iter([path])
    sources = [source.inside(file) for file in files]
    if path.is_dir() and (packed := len(list(_files(path, [f"{p}.zst" for p in patterns])))):
        tally.remarks["left out compressed files (.zst): decompress them first"] += packed
    if not sources:
        raise DataError(f"{path}:1: holds no file named {' or '.join(patterns)}")
    count = 0
    for session in sessions(sources, tally):
        before = len(seen)
        answers = sum(len(chat.answers) for chat in session.chats)
        try:
            for item in items_of_session(session, redact=source.redact, seen=seen):
                count += 1
                yield item
        except RecursionError as error:
            source.refuse(1, f"session {session.identifier!r}: nested too deep", error)
        # All answers with an id that were not new: copies from a resumed or forked session.
        if repeated := _identified(session) - (len(seen) - before):
            tally.remarks["left out answers that another file or line already had"] += repeated
        if not answers:
            tally.remarks["left out sessions without an answer of the model"] += 1
    tally.report(source)
    # With skipped records the caller learns from those why nothing is left.
    if not count and not source.skipped:
        raise DataError(f"{path}:1: its {len(sources)} session files hold no answer of a model")


def _identified(session: LoggedSession) -> int:
    return sum(answer.identifier is not None for chat in session.chats for answer in chat.answers)


def _is_empty(source: Source, tally: Tally) -> bool:
    """Return whether a file holds nothing; agents make such files before a session begins."""
    with source.open() as file:
        empty = not file.read(HEAD).strip()
    if empty:
        tally.remarks["left out empty files"] += 1
    return empty


def _files(folder: Path, patterns: Sequence[str], limit: int | None = None) -> Iterator[Path]:
    """Yield the log files in a folder and all folders below it, in the order of their names."""
    entries: Iterable[Path] = folder.rglob("*")
    if limit is not None:
        # Detection must not walk through a whole home folder.
        entries = islice(entries, limit)
    matching = [path for path in entries if any(path.match(pattern) for pattern in patterns)]
    yield from sorted(path for path in matching if path.is_file())


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD)
    except OSError:
        return b""


_MILLISECONDS = 1e11
"""A larger number is in milliseconds: in seconds it would be more than 3,000 years from now."""

FILLED = frozenset(
    {
        "state",
        "action",
        "episode_id",
        "step",
        "agent",
        "messages",
        "tools",
        "tool_calls",
        "timestamp",
        "metadata.abandoned",
        "metadata.answer",
        "metadata.cached_tokens",
        "metadata.compactions",
        "metadata.finish_reason",
        "metadata.input_tokens",
        "metadata.messages_after",
        "metadata.model",
        "metadata.output_tokens",
        "metadata.reasoning",
        "metadata.seconds",
        "metadata.source",
        "metadata.tool_runs",
    }
)
"""The item fields that an import of sessions can fill."""
