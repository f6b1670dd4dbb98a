"""Compare a judge with labels of people, and correct what it measures from then on.

    labelled = list(read_judgements("labels.jsonl"))
    calibration = await calibrate(judge, labelled)
    print(calibration)
    calibration.rate(passed=81, n=120)

How far a judge can be trusted: Zheng et al. 2023, https://arxiv.org/abs/2306.05685, section 3.3 on
position bias. Corrections: `evaluation/corrected.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from orbiter.train.callback import map_bounded
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation.agreement import cohen_kappa, krippendorff_alpha
from orbiter.train.evaluation.corrected import Confusion, corrected_mean, corrected_rate
from orbiter.train.evaluation.interval import Interval, mean_interval
from orbiter.train.evaluation.judgement import (
    Judgement,
    JudgementKind,
    last_of_each_rater,
    read_judgements,
)
from orbiter.train.judging.base import Attempt, BaseJudge, Ruling
from orbiter.train.judging.group import GroupJudge
from orbiter.train.storage import write_file

FEW = 20
"""Labels of a kind below which a calibration says that there are few."""


class PositionBias(NamedTuple):
    """What a judge said about pairs when their sides were swapped."""

    pairs: int
    changed: Interval
    """Share of the pairs on which the verdict depended on the sides."""
    first: Interval | None
    """Share of these for which the answer shown first won; 0.5 means no preference. None if there
    are fewer than two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How a judge errs, measured against labels of people."""

    judge: str
    kind: JudgementKind
    """The kind of the labels; those of kind "better" say nothing about a single score."""
    threshold: float
    """Score from which the judge's verdict counts as a pass."""
    labels: tuple[float, ...]
    """People's verdicts: 1 and 0 for right and wrong; else ratings as they are."""
    scores: tuple[float, ...]
    """The judge's scores of the same answers."""
    confusion: Confusion | None
    """None if the labels are ratings, or comparisons."""
    kappa: float | None
    """Cohen's kappa of pass and fail, or of which answer is better."""
    alpha: float | None
    """Krippendorff's alpha, nominal for verdicts and interval for ratings."""
    position: PositionBias | None
    """None without pairs, or for a judge that never sees two answers at once."""
    unreadable: int
    """Labelled answers on which the judge gave no readable verdict; they count in nothing."""

    def rate(self, passed: int, n: int, *, confidence: float = 0.95) -> Interval:
        """Return the share of right answers among n others, of which the judge passed `passed`.

        Raises:
            DataError: the labels are not of right and wrong answers, both of them.
        """
        if self.confusion is None:
            raise DataError(
                "a corrected rate needs labels of kind 'right'; with ratings use mean() instead"
            )
        return corrected_rate(passed, n, self.confusion, confidence=confidence)

    def mean(self, scores: Sequence[float], *, confidence: float = 0.95) -> Interval:
        """Return what people would give other answers on average, to which the judge gave `scores`.

        The labelled answers must be drawn from the same kind of answers.

        Raises:
            DataError: there are fewer than two labels or scores, or they are of kind "better".
        """
        # The scores of such a calibration are 1, 0.5 and 0 for the winner of a pair, which a mean
        # of single scores cannot be compared with.
        if self.kind == "better":
            raise DataError(
                "labels of kind 'better' show which answer people prefer, not what an answer is "
                "worth; calibrate the judge with labels of kind 'right' or 'rating' instead"
            )
        return corrected_mean(scores, self.labels, self.scores, confidence=confidence)

    def corrected(self, scores: Sequence[float], *, confidence: float = 0.95) -> Interval:
        """Return the corrected rate of passes, or for ratings the corrected mean."""
        if self.confusion is None:
            return self.mean(scores, confidence=confidence)
        passed = sum(score >= self.threshold for score in scores)
        return self.rate(passed, len(scores), confidence=confidence)

    def __str__(self) -> str:
        lines = [f"{self.judge} against {len(self.labels)} labels of people"]
        if self.confusion is not None:
            lines += _confusion_lines(self.confusion, self.threshold)
        agreement = {"Cohen's kappa": self.kappa, "Krippendorff's alpha": self.alpha}
        lines += [
            f"  {n}: {'undefined' if v is None else f'{v:.2f}'}" for n, v in agreement.items()
        ]
        if self.position is not None:
            changed, first = self.position.changed, self.position.first
            lines.append(f"  verdict changes with the sides: {changed}")
            if first is not None:
                lines.append(f"  then the answer shown first wins: {first}")
        if self.unreadable:
            lines.append(f"  no readable verdict: {self.unreadable} answers, counted in nothing")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibration as JSON."""
        record = asdict(self)
        for name in ("confusion", "position"):
            value = getattr(self, name)
            record[name] = None if value is None else value._asdict()
        write_file(path, json.dumps(record, indent=1, allow_nan=False).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calibration that `save` wrote.

        Raises:
            DataError: the file does not contain one.
        """
        try:
            record: dict[str, Any] = json.loads(Path(path).read_bytes())
            position = record["position"]
            if position is not None:
                changed, first = position["changed"], position["first"]
                position = PositionBias(
                    position["pairs"],
                    Interval(*changed),
                    None if first is None else Interval(*first),
                )
            confusion = record["confusion"]
            record |= {
                "labels": tuple(map(float, record["labels"])),
                "scores": tuple(map(float, record["scores"])),
                "confusion": None if confusion is None else Confusion(**confusion),
                "position": position,
            }
            return cls(**record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} does not contain a calibration: {error}") from error


async def calibrate(
    judge: BaseJudge,
    labelled: str | os.PathLike[str] | Iterable[Judgement],
    *,
    threshold: float = 0.5,
    concurrency: int = 16,
) -> Calibration:
    """Ask a judge about answers that people have labelled, and keep what it says as its errors.

    From then on `judge.calibration` is the result, and evaluations correct what the judge measures.
    Labels of one kind only: "right", "rating" or "better". If several people labelled the same
    answer, their mean is used, and for verdicts the majority; without one the label is left out.

    Args:
        judge: Compares pairs of kind "better" with their sides both ways if it is a `GroupJudge`;
            a `Judge` scores both answers. A `GroupJudge` needs two labelled answers of a task.
        labelled: The labels, or a file of them, as `orbiter-train label` writes it.
        threshold: Score from which the judge's verdict counts as a pass.
        concurrency: Most tasks asked about at once.

    Raises:
        DataError: there are no labels with a value, or of several kinds, or none was readable.
        CallbackError: the judge's model raised.
        BudgetError: the judge reached a limit of its calls.
    """
    if not isinstance(judge, BaseJudge):
        raise ConfigError(f"calibrate() takes a Judge or a GroupJudge, got {type(judge).__name__}")
    records = read_judgements(labelled) if isinstance(labelled, str | os.PathLike) else labelled
    labels = _merged(records)
    kind = labels[0].kind
    if kind == "better":
        calibration = await _of_pairs(judge, labels, threshold, concurrency)
    else:
        calibration = await _of_answers(judge, labels, threshold, concurrency)
    judge.use_calibration(calibration)
    return calibration


def _merged(records: Iterable[Judgement]) -> list[Judgement]:
    """Return one label for each answer or pair that was labelled."""
    by_subject: dict[str, list[Judgement]] = {}
    # A label that its rater changed later counts only as it was last.
    for record in last_of_each_rater(records):
        if record.value is not None:
            by_subject.setdefault(record.subject, []).append(record)
    kinds = sorted({record.kind for group in by_subject.values() for record in group})
    if len(kinds) != 1:
        kinds_given = " and ".join(kinds) or "none with a value"
        raise DataError(f"a calibration needs labels of one kind, got {kinds_given}")
    merged = []
    for group in by_subject.values():
        mean = fmean(record.value for record in group if record.value is not None)
        if kinds == ["rating"]:
            merged.append(_with_value(group[0], mean))
        elif mean != 0.5:  # without a majority, or equally good: nothing to agree with
            merged.append(_with_value(group[0], float(mean > 0.5)))
    if not merged:
        raise DataError("people agree on no label, so there is nothing to compare the judge with")
    return merged


def _with_value(label: Judgement, value: float) -> Judgement:
    return Judgement(
        rater=label.rater, kind=label.kind, value=value, task=label.task, answers=label.answers
    )


async def _of_answers(
    judge: BaseJudge, labels: Sequence[Judgement], threshold: float, concurrency: int
) -> Calibration:
    groups: dict[str, list[Judgement]] = {}
    for index, label in enumerate(labels):
        # A group judge needs the answers of a task together; any other judge rates each alone.
        groups.setdefault(label.task if judge.relative else str(index), []).append(label)
    if judge.relative and not any(len(group) > 1 for group in groups.values()):
        raise DataError(
            "a GroupJudge compares answers to the same task, and no two labelled answers share "
            "their task; label several answers to each task"
        )

    async def ask(group: Sequence[Judgement]) -> list[Ruling]:
        return await judge.rule_on([Attempt(label.task, label.answers[0]) for label in group])

    rulings = await map_bounded(list(groups.values()), ask, concurrency=concurrency)
    # In the order of the groups, as the rulings are.
    ordered = [label for group in groups.values() for label in group]
    flat = [ruling for group in rulings for ruling in group]
    pairs = [
        (label.value, ruling.score)
        for label, ruling in zip(ordered, flat, strict=True)
        if label.value is not None and ruling.score is not None
    ]
    if not pairs:
        raise DataError(f"the judge gave no readable verdict on any label: {flat[0].reason}")
    values, scores = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    is_rating = labels[0].kind == "rating"
    # The score must reach the threshold, as in `rate`.
    passed = [float(score >= threshold) for score in scores]
    verdicts = list(zip(values, passed, strict=True))
    units = list(zip(values, scores, strict=True)) if is_rating else verdicts
    return Calibration(
        judge=judge.name,
        kind=labels[0].kind,
        threshold=threshold,
        labels=tuple(values),
        scores=tuple(scores),
        confusion=None if is_rating else _confusion(verdicts),
        kappa=None if is_rating else cohen_kappa(values, passed),
        alpha=krippendorff_alpha(units, level="interval" if is_rating else "nominal"),
        position=None,
        unreadable=len(labels) - len(pairs),
    )


def _confusion(verdicts: Sequence[tuple[float, float]]) -> Confusion:
    """Return the counts of (label, verdict)."""
    # The order of Confusion's fields: the label first, then the verdict.
    return Confusion(*(verdicts.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))))


async def _of_pairs(
    judge: BaseJudge, labels: Sequence[Judgement], threshold: float, concurrency: int
) -> Calibration:
    async def ask(label: Judgement) -> list[float | None]:
        attempts = [Attempt(label.task, answer) for answer in label.answers]
        if isinstance(judge, GroupJudge):
            # Both orders, so that a preference for a side can be seen.
            asked = [await judge.compare(attempts, orders=[order]) for order in ([0, 1], [1, 0])]
        else:
            asked = [await judge.rule_on(attempts)]
        return [_winner(*rulings) for rulings in asked]

    answers = await map_bounded(labels, ask, concurrency=concurrency)
    # A pair counts only if both orders gave a verdict.
    readable = [(label, a) for label, a in zip(labels, answers, strict=True) if None not in a]
    if not readable:
        raise DataError("the judge gave no readable verdict on any pair")
    values = [float(label.value or 0.0) for label, _ in readable]
    # A verdict that changes with the sides is no verdict: half for either.
    scores = [fmean(v for v in answer if v is not None) for _, answer in readable]
    swapped = [(a[0], a[1]) for _, a in readable if len(a) == 2]
    return Calibration(
        judge=judge.name,
        kind="better",
        threshold=threshold,
        labels=tuple(values),
        scores=tuple(scores),
        confusion=None,
        kappa=cohen_kappa(values, scores),
        alpha=krippendorff_alpha(list(zip(values, scores, strict=True))),
        position=_position_bias(swapped) if swapped else None,
        unreadable=len(labels) - len(readable),
    )


def _winner(first: Ruling, second: Ruling) -> float | None:
    """Return 1 if the first answer of the data is better, 0 if the second is, 0.5 if equal."""
    if first.score is None or second.score is None:
        return None
    return 0.5 if first.score == second.score else float(first.score > second.score)


def _position_bias(swapped: Sequence[tuple[float | None, float | None]]) -> PositionBias:
    """Return how verdicts changed: of each pair as it is, and with its sides swapped."""
    changed = [float(a != b) for a, b in swapped]
    # As it is the first answer is shown first; swapped, the second one. So the side shown first
    # won more often if the first answer did better as it is than swapped.
    first = [float(a > b) for a, b in swapped if a is not None and b is not None and a != b]
    return PositionBias(
        len(swapped), mean_interval(changed), mean_interval(first) if len(first) > 1 else None
    )


def _confusion_lines(confusion: Confusion, threshold: float) -> list[str]:
    lines = [
        f"  right answers: passes {confusion.true_pass} of {confusion.right}; wrong answers: "
        f"passes {confusion.false_pass} of {confusion.wrong} (a pass is a score from {threshold:g})"
    ]
    for what, count in (("right", confusion.right), ("wrong", confusion.wrong)):
        if count < FEW:
            lines.append(f"  only {count} labelled answers are {what}: the intervals will be wide")
    return lines


def uncalibrated(judges: Mapping[str, BaseJudge]) -> list[str]:
    """Return a sentence for each judge whose errors nobody has measured."""
    return [
        f"judge {name!r} is not calibrated: nobody knows how often it errs, so its scores may not "
        "be what people would give; compare it with labels (orbiter.train.judging.calibrate)"
        for name, judge in judges.items()
        if judge.calibration is None
    ]
