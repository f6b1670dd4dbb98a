"""Writes the paid answers and scores of a synthesis run to JSON lines before they are used.

A run that is resumed from a journal repeats the same steps, but reads its answers here instead of
asking again; decisions about them are recomputed. Only results are read back: failed requests, and
those still open when the process was killed, are sent again. Scores count only for the scorer that
gave them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import msgspec

from orbiter.train.contained import check_contained
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.resume_journal import ResumeJournal, differences
from orbiter.train.synthesis.pipeline.result import Rejection, RejectReason
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.codec import decode_item, encode_item

FILE_NAME = "synthesis.jsonl"


class RefusedCandidate(NamedTuple):
    """A candidate that a step rejected, or could not make."""

    rejection: Rejection
    step: int
    """Index of the step."""

    @property
    def can_be_retried(self) -> bool:
        """Whether the step failed, so that asking again may succeed."""
        return self.rejection.reason in ("failed", "budget") and self.rejection.item is not None

    @property
    def source(self) -> TrajectoryItem:
        """The item that the step was to make it from, if it can be retried."""
        assert self.rejection.item is not None, "only asked of what can be retried"
        return self.rejection.item


Candidate = TrajectoryItem | RefusedCandidate
"""An item, or the reason why it is missing."""


class Made(msgspec.Struct, tag="made", omit_defaults=True):
    """The answer to one batch."""

    batch: int
    asked: int
    offset: int
    candidates: list[msgspec.Raw]
    by_step: list[int]
    cost: float = 0.0
    failure: str | None = None
    """The error, if a step raised and there are no candidates."""

    @classmethod
    def of(
        cls,
        batch: int,
        asked: int,
        candidates: Sequence[Candidate],
        by_step: list[int],
        *,
        offset: int = 0,
    ) -> Made:
        """Pack the candidates."""
        return cls(batch, asked, offset, [_packed(each) for each in candidates], by_step)

    def failed(self) -> dict[int, RefusedCandidate]:
        """Return the candidates that failed and can be retried, by their place in the batch."""
        refused = {
            index: _unpacked(raw)
            for index, raw in enumerate(self.candidates)
            # Refused candidates are arrays and items are objects, so most are not decoded at all.
            if bytes(raw).startswith(b"[")
        }
        return {
            index: each
            for index, each in refused.items()
            if isinstance(each, RefusedCandidate) and each.can_be_retried
        }

    def unpacked(self) -> list[Candidate]:
        """Return the candidates; items are as read back from a file."""
        return [_unpacked(raw) for raw in self.candidates]


class ScoredCandidate(msgspec.Struct, tag="scored", omit_defaults=True):
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


class _Scorer(msgspec.Struct, tag="scorer"):
    """The scorer of the scores that follow."""

    scorer: str


class BatchPlan(NamedTuple):
    """The request of one batch, as an earlier process made it."""

    asked: int
    offset: int


class AnswerJournal(Protocol):
    """A store for answers."""

    def plan(self, batch: int) -> BatchPlan | None:
        """Return the request that an earlier process made for a batch."""

    def made(self, batch: int) -> Made | None:
        """Return the answer to a batch that an earlier process had."""

    def scored(self, batch: int, place: int) -> ScoredCandidate | None:
        """Return the score that an earlier process had."""

    def keep(self, answer: Made | ScoredCandidate) -> None:
        """Store an answer; once this has returned, it survives a crash of the process."""

    @property
    def cost(self) -> float:
        """The cost of the answers of earlier processes."""

    def close(self) -> None:
        """Close the file."""


class NoJournal:
    """The journal of a run in memory, which stores nothing."""

    cost = 0.0

    def plan(self, batch: int) -> BatchPlan | None:
        """Return None: there was no earlier process."""

    def made(self, batch: int) -> Made | None:
        """Return None: there was no earlier process."""

    def scored(self, batch: int, place: int) -> ScoredCandidate | None:
        """Return None: there was no earlier process."""

    def keep(self, answer: Made | ScoredCandidate) -> None:
        """Store nothing."""

    def close(self) -> None:
        """Do nothing."""


class FileAnswerJournal:
    """A journal in `synthesis.jsonl` of a run's folder."""

    def __init__(
        self, folder: str | os.PathLike[str], run: Mapping[str, object], *, scorer: str = ""
    ) -> None:
        """Open or begin the journal of the run that `run` describes.

        A journal without any answer belongs to no run yet, so it is started again.

        Raises:
            ConfigError: the folder belongs to a run with other settings; the message lists them.
            StorageError: another process writes to it, or the file is not a synthesis journal.
        """
        path = Path(folder) / FILE_NAME
        check_contained(folder, to_write=True)
        self._log = ResumeJournal(path)
        self._made: dict[int, Made] = {}
        self._plans: dict[int, BatchPlan] = {}
        self._scored: dict[tuple[int, int], ScoredCandidate] = {}
        self._recorded_run: dict[str, object] | None = None
        self._recorded_scorer = ""
        self.cost = 0.0
        try:
            recorded = self._read(scorer)
            if recorded != run:
                # Nothing was paid for yet, so changed settings may take the folder over.
                if recorded is not None and self._holds_answers():
                    raise _other_run(path, recorded, run)
                self._log.append(_ENCODER.encode(_Began(_VERSION, dict(run))))
                # Scores need not be cleared: with any score there would have been answers.
                self._made, self._plans = {}, {}
            if self._recorded_scorer != scorer:
                self._log.append(_ENCODER.encode(_Scorer(scorer)))
        except BaseException:
            self._log.close()
            raise

    def plan(self, batch: int) -> BatchPlan | None:
        """Return the request that an earlier process made for a batch."""
        return self._plans.get(batch)

    def made(self, batch: int) -> Made | None:
        """Return the answer to a batch that an earlier process had."""
        # Popped, because each is read once and a long run would hold all of them.
        return self._made.pop(batch, None)

    def scored(self, batch: int, place: int) -> ScoredCandidate | None:
        """Return the score that an earlier process had from this scorer."""
        return self._scored.pop((batch, place), None)

    def keep(self, answer: Made | ScoredCandidate) -> None:
        """Append the answer."""
        # Before the caller uses it: an answer that was paid for must not be lost.
        self._log.append(_ENCODER.encode(answer))

    def close(self) -> None:
        """Release the file and its lock."""
        self._log.close()

    def _holds_answers(self) -> bool:
        """Return whether anything but failures of the first step has been recorded."""
        return bool(self._scored) or any(
            not (
                isinstance(candidate, RefusedCandidate)
                and candidate.can_be_retried
                and not candidate.step
            )
            for made in self._made.values()
            for candidate in made.unpacked()
        )

    def _read(self, scorer: str) -> Mapping[str, object] | None:
        """Read the existing records; return the description of their run."""
        path = self._log.path
        for number, _, line, _ in self._log.replay():
            try:
                record = _DECODER.decode(line)
            except msgspec.DecodeError as error:
                raise StorageError(
                    f"{path}:{number} is not a record of a synthesis run: {error}"
                ) from error
            # Another tool's JSON lines may decode as one of the records by chance.
            if number == 1 and not isinstance(record, _Began):
                raise StorageError(f"{path}:1 is not the first line of a synthesis run's journal")
            self._take(path, record, scorer)
        return self._recorded_run

    def _take(
        self, path: Path, record: _Began | _Scorer | Made | ScoredCandidate, scorer: str
    ) -> None:
        if isinstance(record, _Began):
            if record.version != _VERSION:
                raise StorageError(
                    f"{path} has format {record.version}; this version reads format {_VERSION}: "
                    "use another run_dir"
                )
            self._recorded_run = record.run
            # A later run in the same folder replaces the earlier one, which had no answers.
            self._made, self._plans, self._scored = {}, {}, {}
        elif isinstance(record, _Scorer):
            self._recorded_scorer = record.scorer
        elif isinstance(record, Made):
            # Paid in any case, also for failures.
            self.cost += record.cost
            self._plans[record.batch] = BatchPlan(record.asked, record.offset)
            # The plan stays, so that the batch is asked for again with the same size.
            if record.failure is None:
                self._made[record.batch] = record
        else:
            self.cost += record.cost
            # A failure or a missing score is not a result: the scorer is asked again.
            if self._recorded_scorer == scorer and record.score is not None:
                self._scored[record.batch, record.place] = record


def _other_run(path: Path, before: Mapping[str, object], now: Mapping[str, object]) -> ConfigError:
    changes = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in differences(before, now)
    ]
    return ConfigError(
        f"{path.parent} holds a run with other settings ({'; '.join(changes)}); use those "
        "settings, choose another run_dir, or delete the folder to start again"
    )


def _packed(candidate: Candidate) -> msgspec.Raw:
    if isinstance(candidate, TrajectoryItem):
        return msgspec.Raw(encode_item(candidate))
    (item, reason, detail), step = candidate
    source = None if item is None else msgspec.Raw(encode_item(item))
    return msgspec.Raw(_ENCODER.encode([reason, detail, step, source]))


def _unpacked(raw: msgspec.Raw) -> Candidate:
    line = bytes(raw)
    if not line.startswith(b"["):
        return decode_item(line)
    reason, detail, step, source = _REFUSED.decode(line)
    item = None if bytes(source) == b"null" else decode_item(bytes(source))
    return RefusedCandidate(Rejection(item, cast("RejectReason", reason), detail), step)


_VERSION = 2
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Began | _Scorer | Made | ScoredCandidate)
_REFUSED = msgspec.json.Decoder(tuple[str, str, int, msgspec.Raw])
