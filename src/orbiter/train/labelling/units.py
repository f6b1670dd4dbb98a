"""What is labelled: one answer, or two answers to the same task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orbiter.train.errors import DataError
from orbiter.train.evaluation import Judgement
from orbiter.train.evaluation.judgement import JudgementKind
from orbiter.train.formats.preference import PROMPT_SETTINGS
from orbiter.train.json_files import fields
from orbiter.train.trajectory import TrajectoryItem


@dataclass(frozen=True, slots=True)
class Unit:
    """A task with the one or two answers that are labelled together."""

    kind: JudgementKind
    items: tuple[TrajectoryItem, ...]
    """The items of the answers, in the order of the data."""

    @property
    def task(self) -> str:
        """The task as text."""
        return self.items[0].state

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers as text."""
        return tuple(item.action for item in self.items)

    @property
    def subject(self) -> str:
        """Identifies the unit among the judgements: see `Judgement.subject`."""
        return Judgement(
            rater="-", kind=self.kind, value=None, cause="-", task=self.task, answers=self.answers
        ).subject


def make_units(items: Iterable[TrajectoryItem], kind: JudgementKind | None = None) -> list[Unit]:
    """Return what can be labelled in a data set, without repeats, in the order of the data.

    Args:
        items: Answers to tasks. Two answers belong to the same task if their states, chats, tools
            and settings of the chat template are equal; empty answers are left out.
        kind: "better" makes pairs of different answers to a task, each answer with the next one;
            "rating" and "right" take single answers. None takes pairs if there are any, and else
            asks whether each answer is right.

    Raises:
        DataError: there is nothing to label; says why.
    """
    groups: dict[bytes, dict[str, TrajectoryItem]] = {}
    for item in items:
        if item.action.strip():
            # Answers can be compared only if the model saw the same.
            beside = [item.metadata.get(name) for name in PROMPT_SETTINGS]
            key = fields.encode_sorted([item.state, item.messages or [], item.tools or [], beside])
            groups.setdefault(key, {}).setdefault(item.action, item)
    answers = [list(group.values()) for group in groups.values()]
    pairs = [pair for group in answers for pair in pairwise(group)]
    if kind is None:
        kind = "better" if pairs else "right"
    if kind == "better":
        units = [Unit(kind, pair) for pair in pairs]
    else:
        units = [Unit(kind, (item,)) for group in answers for item in group]
    if not units:
        raise DataError(
            "there is nothing to label: "
            + (
                "no task has two different answers; label single ones with --kind right or rating"
                if answers
                else "the data holds no answers (every action is empty)"
            )
        )
    return _each_once(units)


def _each_once(units: Sequence[Unit]) -> list[Unit]:
    """Return the units without those that show the same text as an earlier one."""
    first: dict[str, Unit] = {}
    for unit in units:
        first.setdefault(unit.subject, unit)
    return list(first.values())
