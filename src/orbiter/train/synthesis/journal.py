"""Writes the paid answers and scores of a synthesis run to JSON lines before they are used.

A run that is resumed from a journal repeats the same steps, but reads its answers here instead of
asking again; decisions about them are recomputed. Answers that had not arrived when the process was
killed are requested again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from orbiter.train.contained import check_contained
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.resume_journal import ResumeJournal, differences
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.codec import decode_item, encode_item

Candidate = TrajectoryItem | str
"""An item, or the reason why the output of a step is not a valid item."""


class Made(msgspec.Struct, tag="made", omit_defaults=True):
    """The answer to one batch."""

    batch: int
    asked: int
    candidates: list[msgspec.Raw]
    by_step: list[int]
    cost: float = 0.0
    failure: str | None = None

    @classmethod
    def of(
        cls, batch: int, asked: int, candidates: Sequence[Candidate], by_step: list[int]
    ) -> Made:
        """Pack the candidates."""
        return cls(batch, asked, [_packed(candidate) for candidate in candidates], by_step)

    def unpacked(self) -> list[Candidate]:
        """Return the candidates; an item comes out as a file gives it back."""
        return [_unpacked(raw) for raw in self.candidates]


class Scored(msgspec.Struct, tag="scored", omit_defaults=True):
    """The scorer's answer on one candidate."""

    batch: int
    place: int
    score: float | None
    reason: str = ""
    cost: float = 0.0
    failure: str | None = None


class _Began(msgspec.Struct, tag="began"):
    version: int
    run: dict[str, object]


class Journal(Protocol):
    """A store for answers."""

    def made(self, batch: int) -> Made | None:
        """Return the answer to a batch that an earlier process had."""

    def scored(self, batch: int, place: int) -> Scored | None:
        """Return the score that an earlier process had."""

    def keep(self, answer: Made | Scored) -> None:
        """Store an answer; once this has returned, it survives a crash of the process."""

    @property
    def cost(self) -> float:
        """The cost of the answers of earlier processes."""

    def close(self) -> None:
        """Close the file."""


class NoJournal:
    """Keeps nothing: a run in memory."""

    cost = 0.0

    def made(self, batch: int) -> Made | None:
        """Return None: there was no earlier process."""

    def scored(self, batch: int, place: int) -> Scored | None:
        """Return None: there was no earlier process."""

    def keep(self, answer: Made | Scored) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Do nothing."""


class FileJournal:
    """A journal in `synthesis.jsonl` of a run's folder."""

    def __init__(self, folder: str | os.PathLike[str], run: Mapping[str, object]) -> None:
        """Open or begin the journal of the run that `run` describes.

        Raises:
            ConfigError: the folder belongs to a run with other settings; the message lists them.
            StorageError: another process writes to it, or the file is not a synthesis journal.
        """
        path = Path(folder) / "synthesis.jsonl"
        check_contained(folder, to_write=True)
        self._log = ResumeJournal(path)
        self._made: dict[int, Made] = {}
        self._scored: dict[tuple[int, int], Scored] = {}
        self.cost = 0.0
        try:
            if not self._read(run):
                self._log.append(_ENCODER.encode(_Began(1, dict(run))))
        except BaseException:
            self._log.close()
            raise

    def made(self, batch: int) -> Made | None:
        """Return the answer to a batch that an earlier process had."""
        return self._made.pop(batch, None)

    def scored(self, batch: int, place: int) -> Scored | None:
        """Return the score that an earlier process had."""
        return self._scored.pop((batch, place), None)

    def keep(self, answer: Made | Scored) -> None:
        """Append the answer."""
        self._log.append(_ENCODER.encode(answer))

    def close(self) -> None:
        """Let go of the file and its lock."""
        self._log.close()

    def _read(self, run: Mapping[str, object]) -> bool:
        """Read the existing records; return whether there were any."""
        number, path = 0, self._log.path
        for number, _, line, _ in self._log.replay():
            try:
                record = _DECODER.decode(line)
            except msgspec.DecodeError as error:
                raise StorageError(
                    f"{path}:{number} is not a record of a synthesis run: {error}"
                ) from error
            if (number == 1) != isinstance(record, _Began):
                raise StorageError(f"{path}:{number} is out of place in a synthesis run's journal")
            if isinstance(record, _Began):
                _check_same(path, record, run)
            elif isinstance(record, Made):
                self._made[record.batch] = record
                self.cost += record.cost
            else:
                self._scored[record.batch, record.place] = record
                self.cost += record.cost
        return number > 0


def _check_same(path: Path, began: _Began, run: Mapping[str, object]) -> None:
    if began.version != 1:
        raise StorageError(f"{path} has format {began.version}; this version reads format 1")
    changes = [
        f"{name} was {began.run.get(name)!r}, is {run.get(name)!r}"
        for name in differences(began.run, run)
    ]
    if changes:
        raise ConfigError(
            f"{path.parent} holds a run with other settings ({'; '.join(changes)}); use those "
            "settings, or another run_dir"
        )


def _packed(candidate: Candidate) -> msgspec.Raw:
    if isinstance(candidate, str):
        return msgspec.Raw(_ENCODER.encode(candidate))
    return msgspec.Raw(encode_item(candidate))


def _unpacked(raw: msgspec.Raw) -> Candidate:
    line = bytes(raw)
    return msgspec.json.decode(line, type=str) if line.startswith(b'"') else decode_item(line)


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Began | Made | Scored)
