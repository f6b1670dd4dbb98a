"""Agreement of raters beyond chance: Krippendorff's alpha and Cohen's kappa."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from orbiter.train.checks import is_finite_number, shown
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation.judgement import Judgement

Level = Literal["nominal", "ordinal", "interval"]
"""How the distance of two values is measured: equal or not, by rank, or by difference."""


def krippendorff_alpha(
    units: Iterable[Sequence[float | None]], *, level: Level = "nominal"
) -> float | None:
    """Return the agreement of any number of raters, some of whose values may be missing.

    1 means that they always agree, 0 that they agree as often as chance, below 0 less often.

        alpha = 1 - (n - 1) sum_u sum_{i<j} d(u_i, u_j) / (m_u - 1) / sum_{i<j} d(v_i, v_j)

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section E,
    https://repository.upenn.edu/handle/20.500.14332/2089: u runs over the units with m_u >= 2
    values, v over their n values; d is 0 or 1 for nominal, and a squared distance otherwise.

    Args:
        units: The ratings of each unit, one per rater; None if missing.
        level: What the distance between two values means.

    Returns:
        None if it is undefined: nothing has two values, or all values are equal.

    Raises:
        DataError: a value is not a finite number.
    """
    if level not in get_args(Level):
        raise ConfigError(f"level must be one of {', '.join(get_args(Level))}, got {level!r}")
    rated = [[_number(v) for v in unit if v is not None] for unit in units]
    rated = [unit for unit in rated if len(unit) >= 2]
    counts = Counter(value for unit in rated for value in unit)
    position_of = _places(counts, level)
    if len(counts) < 2:
        return None
    expected = _pair_distances(counts, position_of, level)
    # A unit counts by its number of values, not by its number of pairs.
    observed = math.fsum(
        _pair_distances(Counter(unit), position_of, level) / (len(unit) - 1) for unit in rated
    )
    return 1 - (counts.total() - 1) * observed / expected


def alpha_of(judgements: Iterable[Judgement], *, level: Level | None = None) -> float | None:
    """Return Krippendorff's alpha of judgements, which belong together by their subject.

    `level` None means "interval" if there are ratings among them, and else "nominal".
    """
    units: dict[str, list[float | None]] = {}
    ratings = False
    for judgement in judgements:
        units.setdefault(judgement.subject, []).append(judgement.value)
        ratings |= judgement.kind == "rating"
    return krippendorff_alpha(units.values(), level=level or ("interval" if ratings else "nominal"))


def cohen_kappa(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the agreement of two raters beyond chance, on values that are equal or not.

        kappa = (p_o - p_e) / (1 - p_e)

    Cohen 1960, https://doi.org/10.1177/001316446002000104: p_o is the share on which they agree,
    p_e the share that two independent raters with the same habits would agree on.

    Returns:
        None if it is undefined: both always gave the same one value.

    Raises:
        DataError: the two differ in length or are empty.
    """
    if len(a) != len(b) or not a:
        raise DataError(f"kappa needs two values for each unit, got {len(a)} and {len(b)} values")
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    of_a, of_b = Counter(a), Counter(b)
    # Independent raters agree on a value with the product of their shares.
    expected = sum(of_a[value] * of_b[value] for value in of_a) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def _number(value: object) -> float:
    if not is_finite_number(value):
        raise DataError(f"a rating must be a finite number or None, got {shown(value)}")
    return float(value)


def _places(counts: Counter[float], level: Level) -> dict[float, float]:
    """Return each value's position: its mean rank for ordinal data, otherwise the value.

    With ranks, the distance of two values is the number of values between them, each end counted
    half, as Krippendorff's ordinal metric has it.
    """
    if level != "ordinal":
        return {value: value for value in counts}
    places, below = {}, 0
    for value in sorted(counts):
        places[value] = below + counts[value] / 2
        below += counts[value]
    return places


def _pair_distances(counts: Counter[float], position_of: dict[float, float], level: Level) -> float:
    """Return the sum of the distances of all pairs of values, each pair once."""
    n = counts.total()
    # All pairs minus those of equal values.
    if level == "nominal":
        return (n * n - sum(count * count for count in counts.values())) / 2
    mean = math.fsum(count * position_of[value] for value, count in counts.items()) / max(1, n)
    # The sum over pairs of squared distances is n times the squared distances from the mean.
    return n * math.fsum(
        count * (position_of[value] - mean) ** 2 for value, count in counts.items()
    )
