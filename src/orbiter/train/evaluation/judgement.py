"""One verdict of one rater, a person or a judge model: the record that both write.

    {"rater": "ann", "kind": "better", "value": 1.0, "task": "Say hello.",
     "answers": ["Hello!", "No."], "shown": [1, 0], "note": "", "seconds": 2.5}

`orbiter-train label` and the judges write such lines, `calibrate` compares the two, and the
preference trainers read them. They are compared by `subject`, a digest of task and answers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import DataError
from orbiter.train.json_files.records import read_records
from orbiter.train.json_files.source import Source

JudgementKind = Literal["rating", "right", "better"]
"""A number for an answer; 1 for a right answer and 0 for a wrong one; the better of two answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one rater said about one answer, or about two answers to the same task."""

    rater: str
    """Name of the person, or of the judge model."""
    kind: JudgementKind
    value: float | None
    """The rating, in the rater's units. For "right" 1 or 0. For "better" 1 if the first of
    `answers` is better, 0 if the second is, 0.5 if they are equally good. None if there is no
    verdict: `cause` says why, and the record counts in no mean."""
    task: str
    """The task as text: an item's state."""
    answers: tuple[str, ...]
    """One answer, or two with "better", in the order of the data and not of the display."""
    shown: tuple[int, ...] = ()
    """Order in which the rater saw `answers`: (1, 0) means sides swapped. Empty means as they are.
    A group judge rates one answer of several: its place among them."""
    cause: str = ""
    """Why there is no value: "skipped", "unreadable", "budget" or what failed."""
    note: str = ""
    """The rater's reason or remark."""
    seconds: float | None = None
    """How long the verdict took, in seconds."""

    def __post_init__(self) -> None:
        for name in ("rater", "task", "cause", "note"):
            _check_text(name, getattr(self, name))
        if not self.rater.strip():
            raise DataError("a judgement needs the name of its rater, got an empty text")
        if self.kind not in get_args(JudgementKind):
            kinds = ", ".join(get_args(JudgementKind))
            raise DataError(f"kind of a judgement must be one of {kinds}, got {self.kind!r}")
        if not isinstance(self.answers, tuple):
            raise DataError(f"answers must be a tuple of texts, got {shown(self.answers)}")
        for answer in self.answers:
            _check_text("an answer", answer)
        wanted = 2 if self.kind == "better" else 1
        if len(self.answers) != wanted:
            raise DataError(
                f"a judgement of kind {self.kind!r} has {wanted} answer{'s' * (wanted > 1)}, got "
                f"{len(self.answers)}"
            )
        self._check_value()
        places = tuple(self.shown)
        # A bool is an int in Python, but no place.
        whole = all(isinstance(p, int) and not isinstance(p, bool) and p >= 0 for p in places)
        if not whole or (wanted == 2 and places and sorted(places) != [0, 1]):
            raise DataError(f"shown must hold places of answers, as (1, 0), got {shown(places)}")

        took = self.seconds
        if took is not None and not (is_finite_number(took) and took >= 0):
            raise DataError(f"seconds of a judgement must be at least 0, got {shown(took)}")

    def _check_value(self) -> None:
        value = self.value
        if value is None:
            if not self.cause:
                raise DataError("a judgement without a value needs a cause, such as 'skipped'")
            return
        if not is_finite_number(value) or isinstance(value, bool):
            raise DataError(f"value of a judgement must be a finite number, got {shown(value)}")
        allowed = {"right": (0, 1), "better": (0, 0.5, 1)}.get(self.kind)
        if allowed is not None and value not in allowed:
            raise DataError(
                f"value of a judgement of kind {self.kind!r} must be one of "
                f"{', '.join(map(str, allowed))}, got {value!r}"
            )

    @property
    def subject(self) -> str:
        """Digest of kind, task and answers: judgements of the same thing have the same one."""
        # JSON of a list, since joined texts could be equal for different answers.
        content = json.dumps([self.kind, self.task, *self.answers]).encode()
        return hashlib.blake2b(content, digest_size=12).hexdigest()

    @property
    def swapped(self) -> bool:
        """Whether the rater saw the second answer first."""
        return tuple(self.shown) == (1, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values; empty fields are left out."""
        record: dict[str, Any] = {
            "rater": self.rater,
            "kind": self.kind,
            "value": self.value,
            "task": self.task,
            "answers": list(self.answers),
        }
        optional = {
            "shown": list(self.shown),
            "cause": self.cause,
            "note": self.note,
            "seconds": self.seconds,
        }
        return record | {
            name: value for name, value in optional.items() if value not in ([], "", None)
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Judgement:
        """Return the judgement in a record; further keys are ignored.

        Raises:
            DataError: a key is missing, or a value does not fit; names it.
        """
        missing = [k for k in ("rater", "kind", "value", "task", "answers") if k not in record]
        if missing:
            raise DataError(f"a judgement needs the keys {', '.join(missing)}")
        values = {name: record[name] for name in cls.__slots__ if name in record}
        for name in ("answers", "shown"):
            held = values.get(name, ())
            if not isinstance(held, Sequence) or isinstance(held, str):
                raise DataError(f"{name} of a judgement must be a list, got {shown(held)}")
            values[name] = tuple(held)
        return cls(**values)


def read_judgements(path: str | os.PathLike[str]) -> Iterator[Judgement]:
    """Yield the judgements in a file of JSON lines.

    Raises:
        DataError: a line is not a judgement; names file and line.
    """
    source = Source(path, "raise", "error", [])
    for line, record in read_records(source):
        try:
            yield Judgement.from_dict(record)
        except DataError as error:
            raise DataError(f"{path}:{line}: {error}") from error


def last_of_each_rater(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Return each rater's last judgement of each subject, in the order of the first ones.

    A journal of labels is only ever added to: a person who changes a label writes it once more.
    """
    last: dict[tuple[str, str], Judgement] = {}
    for judgement in judgements:
        last[judgement.rater, judgement.subject] = judgement
    return list(last.values())


def judgement_lines(judgements: Iterable[Judgement]) -> Iterator[bytes]:
    """Yield judgements as lines of JSON, without the line ends."""
    for judgement in judgements:
        # allow_nan=False: NaN is no JSON, and no verdict.
        yield json.dumps(judgement.to_dict(), ensure_ascii=False, allow_nan=False).encode()


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name} of a judgement must be a text, got {shown(value)}")
    # Half a surrogate pair cannot be written as UTF-8.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} of a judgement has half a surrogate pair") from error
