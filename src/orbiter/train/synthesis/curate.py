"""Keeps the good rows of data: filters by score and removes near-duplicates.

Every function is pure, keeps the kind and order of the data, and lists the dropped rows in the
`CurationReport` passed to it. Splitting is in `split.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from orbiter.train.errors import ConfigError, DataError, boundary, did_you_mean
from orbiter.train.synthesis.comparison import (
    Unit,
    Units,
    by_context,
    check_unit,
    units_by_key,
    units_of,
)
from orbiter.train.synthesis.records import (
    D,
    Data,
    Records,
    Row,
    value_of,
)
from orbiter.train.synthesis.report import CurationReport, Dropped
from orbiter.train.synthesis.similarity import Match, Measure, near_duplicates

Missing: TypeAlias = Literal["drop", "keep", "raise"]
Keep: TypeAlias = Literal["best", "first", "last", "longest"]

_log = logging.getLogger(__name__)


@runtime_checkable
class RowScorer(Protocol):
    """An object that scores many rows at once, such as a `RewardModel`."""

    def score_rows(self, rows: Sequence[Any]) -> Sequence[float]:
        """Return the score of each row, in order."""


# ── by score ──────────────────────────────────────────────────────────────────────────────────────


def filter_by_score(
    data: D,
    min_score: float | None = None,
    *,
    top_k: int | None = None,
    quantile: float | None = None,
    key: str | Callable[[Row], float | None] | RowScorer | None = None,
    missing: Missing = "drop",
    report: CurationReport | None = None,
) -> D:
    """Return the rows that score well enough, in their order.

    A row is kept if it meets every given criterion.

    Args:
        data: a `TrajectoryDataset`, a list of `TrajectoryItem` or a list of mappings.
        min_score: the lowest score to keep.
        top_k: keep the k best of the remaining rows; of equal ones the earlier.
        quantile: drop this share of the lowest scores: 0.75 keeps the best quarter, and rows
            that tie with its last.
        key: where the score is: the name of a field or of an entry in the metadata, a function of
            the row, or a `RewardModel`, which scores all rows at once. Without it, the reward or
            score.
        missing: what happens to a row whose score is None or NaN. A kept one passes every
            criterion.
        report: lists every dropped row.

    Raises:
        ConfigError: there is no criterion, or one is out of range.
        DataError: a score is not a number, or is missing with `missing="raise"`.
    """
    _check_criteria(min_score, top_k, quantile, missing)
    records = Records.of(data)
    scores = _scores(records, key)
    why: dict[int, tuple[str, str]] = {}
    judged = _set_missing_aside(scores, missing, why)
    # Both bounds are of all scored rows; top_k then chooses among those that pass.
    floor = _floor(judged, min_score, quantile)
    for index, score in judged.items():
        if score < floor:
            why[index] = ("score", f"score {score} is below {floor}")
    if top_k is not None:
        passed = [index for index in judged if index not in why]
        # A stable sort, so that of equal scores the earlier row stays.
        for index in sorted(passed, key=lambda index: -judged[index])[top_k:]:
            why[index] = ("rank", f"score {judged[index]} is not among the {top_k} best")
    if report is not None:
        for index in sorted(why):
            report.dropped.append(Dropped(index, records.rows[index], *why[index]))
    return records.take(index for index in range(len(records)) if index not in why)


def _check_criteria(
    min_score: float | None, top_k: int | None, quantile: float | None, missing: str
) -> None:
    if min_score is None and top_k is None and quantile is None:
        raise ConfigError("filter_by_score needs min_score, top_k or quantile")
    if min_score is not None and math.isnan(min_score):
        raise ConfigError("min_score must be a number, got nan")
    if top_k is not None and top_k < 0:
        raise ConfigError(f"top_k must not be negative, got {top_k}")
    if quantile is not None and not 0 <= quantile <= 1:
        raise ConfigError(f"quantile must lie in [0, 1], got {quantile}")
    _check_choice("missing", missing, ("drop", "keep", "raise"))


def _scores(
    records: Records[D], key: str | Callable[[Row], float | None] | RowScorer | None
) -> list[float | None]:
    if key is None:
        return records.scores()
    # Before functions: a reward model is callable too, but scores many rows far faster at once.
    if isinstance(key, RowScorer):
        with boundary("key"):
            values: list[object] = list(key.score_rows(records.rows))
        if len(values) != len(records.rows):
            raise DataError(f"key gave {len(values)} scores for {len(records.rows)} rows")
    else:
        values = [_by_key(row, key) for row in records.rows]
    scores: list[float | None] = []
    for index, value in enumerate(values):
        # A verdict of true or false is not a score with an order, and Python would take it for 1 or
        # 0.
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(f"row {index}: a score must be a number or None, got {value!r:.60}")
        scores.append(value)
    return scores


def _by_key(row: Row, key: str | Callable[[Row], object]) -> object:
    if isinstance(key, str):
        return value_of(row, key)
    with boundary("key function"):
        return key(row)


def _set_missing_aside(
    scores: Sequence[float | None], missing: Missing, why: dict[int, tuple[str, str]]
) -> dict[int, float]:
    # NaN compares false with everything, so no threshold could decide about it.
    judged = {i: s for i, s in enumerate(scores) if s is not None and not math.isnan(s)}
    absent = [index for index in range(len(scores)) if index not in judged]
    if absent and missing == "raise":
        raise DataError(
            f"row {absent[0]} has no score ({len(absent)} of {len(scores)} rows have none); score "
            "them, or set missing='drop' or missing='keep'"
        )
    if missing == "drop":
        why |= dict.fromkeys(absent, ("missing", "has no score"))
        if absent:
            _log.info("%d of %d rows have no score and are dropped", len(absent), len(scores))
    return judged


def _floor(judged: dict[int, float], min_score: float | None, quantile: float | None) -> float:
    floor = -math.inf if min_score is None else min_score
    if quantile is None or not judged:
        return floor
    ordered = sorted(judged.values())
    # The quantile as written in decimal: 0.07 of 100 rows is 7; float rounding would give 8.
    rank = math.ceil(Fraction(str(quantile)) * len(ordered))
    # With quantile 1 the best row stays, and rows that tie with it.
    return max(floor, ordered[min(rank, len(ordered) - 1)])


# ── near-duplicates ──────────────────────────────────────────────────────────────────────────────


def deduplicate(
    data: D,
    threshold: float | Fraction = 0.9,
    *,
    unit: Unit = "episode",
    ngram: int = 3,
    key: str | Callable[[Row], str] | None = None,
    keep: Keep = "best",
    against: Data | None = None,
    report: CurationReport | None = None,
) -> D:
    """Return the data without near-duplicates, in its order.

    Two units are near-duplicates if the sets of their word n-grams have a Jaccard similarity of
    `threshold` or more. Before that, compatibility forms and case are folded (NFKC, `casefold`)
    and the text is split at white space; in scripts without spaces each character is a word. A
    text of fewer than n words is one n-gram. `comparison.py` defines which text of a row is
    compared and which rows are kept or dropped together: by default whole episodes, compared by the
    text that their steps add, without shared system prompts and repeated history.

    The answer is exact: no two kept units reach the threshold, and each dropped one reaches it with
    a kept one, which the report names. Similarity is not transitive here: if A is like B and B is
    like C, but A is not like C, then A and C stay.

    Args:
        data: a `TrajectoryDataset`, a list of `TrajectoryItem` or a list of mappings.
        threshold: in (0, 1], the decimal as written; 1.0 requires the same set of n-grams.
        unit: "episode" keeps or drops whole episodes, "step" single rows by what they add, "text"
            single rows by their whole state and action.
        ngram: words in an n-gram.
        key: the text of a row to compare instead: the name of a field, or a function of the row.
            The texts of an episode are joined, unless `unit` asks for single rows.
        keep: which of several similar units stays: the one with the best score (for an episode the
            mean of its scores; unscored ones last, of equal ones the first), the first, the last,
            or the one with the longest text.
        against: rows to exclude, such as a test set: rows similar to one of these are dropped
            too. They are not part of the result.
        report: lists every dropped row, with the first row of the kept unit as its witness.

    Raises:
        ConfigError: `threshold`, `unit`, `ngram` or `keep` is out of range or unknown.
        DataError: a row has an unknown shape, or `key` gives no text for it.
    """
    measure = Measure(threshold, ngram)
    check_unit(unit)
    records = Records.of(data)
    reference = Records.of([] if against is None else against)
    units = _units(reference, records, key, unit)
    # Other orders need no scores, and reading them may fail on odd rows.
    scores = [*reference.scores(), *records.scores()] if keep == "best" else []
    order = _order(units, scores, keep, len(reference))
    dropped: dict[int, Dropped] = {}
    for number, match in _matches(units, order, len(reference), measure).items():
        witness = units.members[match.witness][0]
        for row in units.members[number]:
            index = row - len(reference)
            dropped[index] = _duplicate(index, records.rows[index], match, witness, len(reference))
    if report is not None:
        report.dropped += [dropped[index] for index in sorted(dropped)]
    return records.take(index for index in range(len(records)) if index not in dropped)


def _units(
    reference: Records[Data],
    records: Records[D],
    key: str | Callable[[Row], str] | None,
    unit: Unit,
) -> Units:
    rows = [*reference.rows, *records.rows]
    if key is None:
        return units_of(rows, unit, reference=len(reference))
    texts = _key_texts(reference, key) + _key_texts(records, key)
    return units_by_key(rows, texts, unit, reference=len(reference))


def _matches(
    units: Units, order: Sequence[int], reference: int, measure: Measure
) -> dict[int, Match]:
    """Find the units to drop; only units under the same instructions are compared."""
    matches: dict[int, Match] = {}
    for numbers in by_context(units.contexts, order):
        fixed = 0
        # The order begins with the reference set, so it is a prefix in each context as well.
        while fixed < len(numbers) and units.members[numbers[fixed]][0] < reference:
            fixed += 1
        close = near_duplicates([units.texts[n] for n in numbers], measure, reference=fixed)
        for index, match in close.items():
            matches[numbers[index]] = match._replace(witness=numbers[match.witness])
    return matches


def _key_texts(records: Records[D], key: str | Callable[[Row], str]) -> list[str]:
    texts: list[str] = []
    for index, row in enumerate(records.rows):
        text = _by_key(row, key)
        if not isinstance(text, str):
            raise DataError(f"row {index}: key {key!r} must give text, got {text!r:.60}")
        texts.append(text)
    return texts


def _order(units: Units, scores: Sequence[float | None], keep: str, reference: int) -> list[int]:
    """Return the numbers of the units: the reference set, then the others, best first."""
    _check_choice("keep", keep, ("best", "first", "last", "longest"))
    # Units are sorted by first rows, so the reference set comes first.
    first = sum(rows[0] < reference for rows in units.members) if reference else 0
    order = list(range(first, len(units.members)))
    if keep == "last":
        order.reverse()
    elif keep == "longest":
        order.sort(key=lambda number: -len(units.texts[number]))
    elif keep == "best":
        if len(scores) == len(units.members):  # no episode of several rows
            worth = [math.inf if s is None or s != s else -s for s in scores]  # noqa: PLR0124 - NaN
        else:
            worth = [_worth([scores[row] for row in rows]) for rows in units.members]
        order.sort(key=worth.__getitem__)
    return [*range(first), *order]


def _worth(scores: Sequence[float | None]) -> float:
    """Return minus the mean of the known scores, so that the best unit sorts first."""
    known = [score for score in scores if score is not None and not math.isnan(score)]
    # Exact, where a mean might round: ties between single rows must stay ties.
    if len(known) == 1:
        return -known[0]
    return -math.fsum(known) / len(known) if known else math.inf


def _duplicate(index: int, row: Row, match: Match, witness: int, reference: int) -> Dropped:
    outside = witness < reference
    # Numbers of the caller's own data, not of the two sets joined.
    at = witness if outside else witness - reference
    reason, where = ("duplicate_of_reference", "reference row") if outside else ("duplicate", "row")
    detail = (
        f"shares {match.shared} of {match.union} n-grams ({match.similarity:.3f}) with {where} {at}"
    )
    return Dropped(index, row, reason, detail, at, match.similarity)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ConfigError(
            f"{name} must be one of {listed}, got {value!r}{did_you_mean(value, choices)}"
        )
