"""One person's labelling: what is shown next, and the journal of what was said.

The journal is a file of `Judgement`s, one a line, written before the page shows the next unit.
Labelling a unit again adds a line; only the last one is used.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orbiter.train.checks import is_finite_number
from orbiter.train.errors import ConfigError, DataError, StorageError
from orbiter.train.evaluation import Judgement
from orbiter.train.labelling.units import Unit
from orbiter.train.resume_journal import ResumeJournal
from orbiter.train.seeding import sub_random

MOST_NOTE = 10_000
"""Characters of a note."""
SKIPPED = "skipped"
LONGEST = 3600.0
"""Seconds above which a pause was no thinking, so its time is not recorded."""


class ShownUnit(NamedTuple):
    """A unit as the page shows it."""

    place: int
    """Position in this person's order, from 0."""
    unit: Unit
    order: tuple[int, ...]
    """The answers' places in the data, in the order in which they are shown."""
    given: Judgement | None
    """The label that this person has given it so far."""
    version: int = 0
    """How often it has been labelled."""


class OutdatedError(DataError):
    """The unit was labelled again after the page had shown it, as in another tab."""


class LabelSession:
    """The units in one person's order, and a journal; safe to use from several threads."""

    def __init__(
        self,
        units: Sequence[Unit],
        path: str | os.PathLike[str],
        *,
        rater: str,
        scale: int = 5,
        seed: int = 0,
    ) -> None:
        """Open or create the journal at `path`.

        Args:
            units: What to label.
            path: The journal; several people may use one file, one after the other.
            rater: Who labels; decides the order of the units and of the sides, with the seed.
            scale: The largest rating; the smallest is 1.
            seed: Seed of the order.

        Raises:
            ConfigError: the name is empty, the scale has no keys, or the journal has a rating above
                it.
            StorageError: another process writes the journal, or it is damaged.
        """
        if not rater.strip() or len(rater) > 100:
            raise ConfigError(f"the rater needs a name of at most 100 characters, got {rater!r}")
        if not 2 <= scale <= 9:
            raise ConfigError(f"scale must be from 2 to 9, a key for each, got {scale}")
        self.rater, self.scale = rater, scale
        self.kind = units[0].kind
        self._units = list(units)
        sub_random(seed, "label", rater).shuffle(self._units)
        # By subject and not by position, so that a unit keeps its sides if the data grow.
        swap = {u.subject: sub_random(seed, "side", rater, u.subject) for u in self._units}
        self._orders = [
            tuple(reversed(range(len(u.items))))
            if swap[u.subject].random() < 0.5
            else tuple(range(len(u.items)))
            for u in self._units
        ]
        self._places = {u.subject: place for place, u in enumerate(self._units)}
        self._given: dict[int, Judgement] = {}
        self._versions: Counter[int] = Counter()
        self._elsewhere: set[str] = set()
        self._lock = threading.Lock()
        self._journal = ResumeJournal(path, durability="group")
        try:
            self._replay()
        except BaseException:
            self._journal.close()
            raise

    def _replay(self) -> None:
        for line in self._journal.replay():
            try:
                judgement = Judgement.from_dict(msgspec.json.decode(line.record))
            except (DataError, msgspec.DecodeError, TypeError) as error:
                raise StorageError(
                    f"{self._journal.path}:{line.number} is not a label: {error}"
                ) from error
            # The file may also hold another person's lines, or labels of other data.
            if judgement.rater != self.rater:
                continue
            place = self._places.get(judgement.subject)
            if place is None:
                self._elsewhere.add(judgement.subject)
                continue
            if judgement.kind == "rating" and (judgement.value or 0) > self.scale:
                raise ConfigError(
                    f"{self._journal.path}:{line.number} holds the rating {judgement.value:g}, and "
                    f"the scale ends at {self.scale}; use the scale of the earlier ratings, or "
                    "another file"
                )
            self._given[place] = judgement
            self._versions[place] += 1

    @property
    def total(self) -> int:
        """How many units there are."""
        return len(self._units)

    @property
    def done(self) -> int:
        """How many of them this person has labelled or skipped."""
        return len(self._given)

    @property
    def elsewhere(self) -> int:
        """How many units this person has labelled in the journal that are not in the data."""
        return len(self._elsewhere)

    @property
    def first_open(self) -> int:
        """The place of the first unit that is not labelled; `total` if all are."""
        with self._lock:
            return next((p for p in range(self.total) if p not in self._given), self.total)

    def shown(self, place: object) -> ShownUnit:
        """Return a unit in this person's order.

        Raises:
            DataError: there is no such place.
        """
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < self.total:
            last = self.total - 1
            raise DataError(f"place must be a whole number from 0 to {last}, got {place!r}")
        given, version = self._given.get(place), self._versions[place]
        return ShownUnit(place, self._units[place], self._orders[place], given, version)

    def label(self, place: object, answer: Mapping[str, Any]) -> Judgement:
        """Record a label of the unit at `place`, and return it.

        Args:
            place: Position in this person's order.
            answer: `value` is "left", "right" or "equal" for two answers, a number for a rating,
                true or false for right or wrong, and null to skip; `note` and `seconds` are
                optional, as is `version`, that of the `ShownUnit` which the person has seen.

        Raises:
            OutdatedError: the unit has been labelled since that version; nothing is recorded.
            DataError: the answer does not fit the kind of the unit.
            StorageError: the journal cannot be written; nothing is recorded.
        """
        shown = self.shown(place)
        note, seconds = answer.get("note", ""), answer.get("seconds")
        if not isinstance(note, str) or len(note) > MOST_NOTE:
            raise DataError(f"a note must be a text of at most {MOST_NOTE:,} characters")
        value = self._value(shown, answer.get("value"))
        judgement = Judgement(
            rater=self.rater,
            kind=shown.unit.kind,
            value=value,
            task=shown.unit.task,
            answers=shown.unit.answers,
            shown=shown.order if len(shown.order) > 1 else (),
            cause=SKIPPED if value is None else "",
            note=note,
            seconds=float(seconds)
            if is_finite_number(seconds) and 0 <= seconds <= LONGEST
            else None,
        )
        with self._lock:
            if answer.get("version", self._versions[shown.place]) != self._versions[shown.place]:
                raise OutdatedError("this was labelled in another tab or window meanwhile")
            # On disk first: a label that could not be written must not look as if it had been
            # given.
            self._journal.append(msgspec.json.encode(judgement.to_dict()))
            self._given[shown.place] = judgement
            self._versions[shown.place] += 1
        return judgement

    def _value(self, shown: ShownUnit, choice: object) -> float | None:
        """Return the value of a judgement from what the page sends."""
        if choice is None:
            return None
        if self.kind == "better":
            sides = {"left": 0, "right": 1}
            if choice == "equal":
                return 0.5
            if isinstance(choice, str) and choice in sides:
                # The page knows only left and right; 1 means that the first answer of the unit is
                # better.
                return 1.0 if shown.order[sides[choice]] == 0 else 0.0
            raise DataError(f"value must be 'left', 'right', 'equal' or null, got {choice!r}")
        if self.kind == "right":
            if isinstance(choice, bool):
                return float(choice)
            raise DataError(f"value must be true, false or null, got {choice!r}")
        # JSON's true is an int in Python.
        if isinstance(choice, bool) or not isinstance(choice, int) or not 1 <= choice <= self.scale:
            raise DataError(
                f"value must be a whole number from 1 to {self.scale} or null, got {choice!r}"
            )
        return float(choice)

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()

    def __enter__(self) -> LabelSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
