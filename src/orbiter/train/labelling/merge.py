"""Merge the labels of several people, state how far they agree, and make training data of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from orbiter.train.errors import DataError
from orbiter.train.evaluation import Judgement, alpha_of
from orbiter.train.evaluation.judgement import JudgementKind, last_of_each_rater
from orbiter.train.formats.preference import Pair, state_key
from orbiter.train.trajectory import TrajectoryItem


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedLabel:
    """What all people together say about one unit."""

    kind: JudgementKind
    task: str
    answers: tuple[str, ...]
    value: float | None
    """The mean rating; for "right" 1 or 0; for "better" 1 if the first answer is better and 0 if
    the second is. None if as many people say one thing as the other."""
    raters: int
    """How many gave a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The labels of several people."""

    judgements: Sequence[Judgement]
    """Each person's last label of each unit."""
    verdicts: Sequence[MergedLabel]
    """One for each unit that anybody gave a value."""
    alphas: Mapping[JudgementKind, float | None]
    """Krippendorff's alpha of each kind of label; None where nothing was labelled twice, or all
    labels are equal."""
    raters: Mapping[str, int]
    """Number of labels of each person, skipped ones not counted."""

    @property
    def overlap(self) -> int:
        """Units that at least two people gave a value."""
        return sum(verdict.raters > 1 for verdict in self.verdicts)


def merge(judgements: Iterable[Judgement]) -> Merged:
    """Merge labels: a person's last label of a unit replaces earlier ones, and the majority wins.

    Ratings are averaged. Skipped units are ignored.

    Raises:
        DataError: there are no labels, or ratings from 0 to 1, as judges give them, beside larger
            ones of people.
    """
    kept = last_of_each_rater(judgements)
    if not kept:
        raise DataError("there are no labels to merge")
    valued = [judgement for judgement in kept if judgement.value is not None]
    _check_one_scale(valued)
    groups: dict[str, list[Judgement]] = {}
    for judgement in valued:
        groups.setdefault(judgement.subject, []).append(judgement)
    kinds = dict.fromkeys(judgement.kind for judgement in valued)
    return Merged(
        judgements=kept,
        verdicts=[_verdict(group) for group in groups.values()],
        alphas={kind: alpha_of(j for j in valued if j.kind == kind) for kind in kinds},
        raters=Counter(judgement.rater for judgement in valued),
    )


def _check_one_scale(judgements: Sequence[Judgement]) -> None:
    """Refuse ratings whose mean would mix two scales.

    Raises:
        DataError: one rater rates from 0 to 1, and another one higher.
    """
    ratings: dict[str, list[float]] = {}
    for judgement in judgements:
        if judgement.kind == "rating" and judgement.value is not None:
            ratings.setdefault(judgement.rater, []).append(judgement.value)
    # Only a fraction shows a scale from 0 to 1: a person may have given nothing but ones.
    shares = [
        rater
        for rater, values in ratings.items()
        if min(values) >= 0 and max(values) <= 1 and any(0 < value < 1 for value in values)
    ]
    higher = [rater for rater, values in ratings.items() if max(values) > 1]
    if shares and higher:
        raise DataError(
            f"the ratings are on two scales: {shares[0]!r} rates from 0 to 1, and {higher[0]!r} "
            f"gave {max(ratings[higher[0]]):g}; merge the labels of judges apart from "
            "those of people; orbiter.train.judging.calibrate compares a judge with people"
        )


def _verdict(group: Sequence[Judgement]) -> MergedLabel:
    first = group[0]
    mean = fmean(judgement.value for judgement in group if judgement.value is not None)
    value: float | None = mean
    if first.kind != "rating":
        # An even vote is no verdict.
        # The majority; "equal" counts as half a vote for each side.
        value = None if mean == 0.5 else float(mean > 0.5)
    return MergedLabel(
        kind=first.kind,
        task=first.task,
        answers=first.answers,
        value=value,
        raters=len(group),
    )


def labelled_pairs(merged: Merged, data: Iterable[TrajectoryItem] = ()) -> list[Pair]:
    """Return the pairs whose better answer is known, for `PreferenceTrainer`.

    Args:
        merged: The labels.
        data: The items that were labelled; the pairs then have their chats and tools.
    """
    known = _by_text(data)
    pairs = []
    for verdict in merged.verdicts:
        if verdict.kind == "better" and verdict.value is not None:
            first, second = _items(known, verdict)
            better, worse = (first, second) if verdict.value else (second, first)
            pairs.append(Pair(replace(better, reward=1.0), replace(worse, reward=0.0)))
    return pairs


def labelled_items(merged: Merged, data: Iterable[TrajectoryItem] = ()) -> Iterator[TrajectoryItem]:
    """Yield every answer that was rated, or found right or wrong, with that as its reward."""
    known = _by_text(data)
    for verdict in merged.verdicts:
        if verdict.kind != "better" and verdict.value is not None:
            (item,) = _items(known, verdict)
            yield replace(item, reward=verdict.value)


_ByText = Mapping[tuple[str, str], Mapping[bytes, TrajectoryItem]]
"""The items by state and action, and among those with the same texts by their prompts."""


def _by_text(data: Iterable[TrajectoryItem]) -> _ByText:
    known: dict[tuple[str, str], dict[bytes, TrajectoryItem]] = {}
    for item in data:
        known.setdefault((item.state, item.action), {}).setdefault(state_key(item), item)
    return known


def _items(known: _ByText, verdict: MergedLabel) -> list[TrajectoryItem]:
    """Return the items of a verdict's answers, all to the same prompt; bare texts if unknown."""
    by_prompt = [known.get((verdict.task, answer), {}) for answer in verdict.answers]
    # Equal texts may belong to chats or tools that differ, and the sides of a pair must share them.
    prompt = next((key for key in by_prompt[0] if all(key in items for items in by_prompt)), None)
    if prompt is None:
        return [TrajectoryItem(verdict.task, answer) for answer in verdict.answers]
    return [items[prompt] for items in by_prompt]
