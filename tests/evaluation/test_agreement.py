"""Krippendorff's alpha and Cohen's kappa against published examples and their definitions."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation import Judgement, alpha_of, cohen_kappa, krippendorff_alpha
from orbiter.train.evaluation.agreement import Level

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: a row is a rater.
PUBLISHED = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)
# Wikipedia, "Krippendorff's alpha", a computational example.
THREE_CODERS = (
    (None, None, None, None, None, 3, 4, 1, 2, 1, 1, 3, 3, None, 3),
    (1, None, 2, 1, 3, 3, 4, 3, None, None, None, None, None, None, None),
    (None, None, 2, 1, 3, 4, 4, None, 2, 1, 1, 3, 3, None, 4),
)
few = st.lists(st.one_of(st.none(), st.integers(0, 3).map(float)), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_the_published_example_has_the_published_alpha(level: Level, alpha: float) -> None:
    found = krippendorff_alpha(zip(*PUBLISHED, strict=True), level=level)
    assert found == pytest.approx(alpha, abs=5e-4)


def test_the_example_of_three_coders_has_its_alpha() -> None:
    units = list(zip(*THREE_CODERS, strict=True))
    assert krippendorff_alpha(units) == pytest.approx(0.691, abs=5e-4)
    assert krippendorff_alpha(units, level="interval") == pytest.approx(0.811, abs=5e-4)


@given(st.lists(few, min_size=1, max_size=6), st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_one_minus_observed_over_expected_disagreement(
    units: list[list[float | None]], level: Level
) -> None:
    rated = [[v for v in unit if v is not None] for unit in units]
    rated = [unit for unit in rated if len(unit) > 1]
    values = [v for unit in rated for v in unit]

    def distance(a: float, b: float) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        between = sum(low <= v <= high for v in values)
        return 0.0 if a == b else (between - (values.count(a) + values.count(b)) / 2) ** 2

    n = len(values)
    if len(set(values)) < 2:
        assert krippendorff_alpha(units, level=level) is None
        return
    observed = sum(
        2 * sum(distance(a, b) for a, b in combinations(unit, 2)) / (len(unit) - 1)
        for unit in rated
    )
    expected = 2 * sum(distance(a, b) for a, b in combinations(values, 2)) / (n - 1)
    assert krippendorff_alpha(units, level=level) == pytest.approx(1 - observed / expected)


def test_alpha_does_not_depend_on_the_order_of_raters_or_units() -> None:
    units = list(zip(*PUBLISHED, strict=True))
    turned = [unit[::-1] for unit in reversed(units)]
    for level in ("nominal", "ordinal", "interval"):
        assert krippendorff_alpha(turned, level=level) == pytest.approx(
            krippendorff_alpha(units, level=level)
        )


def test_kappa_of_two_raters_by_hand() -> None:
    # Cohen's kappa with 20 and 15 agreements of 50: p_o = 0.7, p_e = 0.5, kappa = 0.4.
    a = [1.0] * 25 + [0.0] * 25
    b = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa([1, 1], [1, 1]) is None
    assert cohen_kappa([0, 1], [1, 0]) == pytest.approx(-1)


def test_impossible_values_are_refused_by_value() -> None:
    with pytest.raises(DataError, match="finite number or None, got nan"):
        krippendorff_alpha([[float("nan"), 1.0]])
    with pytest.raises(ConfigError, match="nominal, ordinal, interval, got 'ratio'"):
        krippendorff_alpha([[1.0, 1.0]], level="ratio")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="got 1 and 2 values"):
        cohen_kappa([1.0], [1.0, 0.0])


def test_judgements_of_the_same_thing_are_compared() -> None:
    def said(rater: str, answer: str, value: float | None) -> Judgement:
        return Judgement(
            rater=rater,
            kind="right",
            value=value,
            task="q",
            answers=(answer,),
            cause="" if value is not None else "skipped",
        )

    given = [said("ann", "a", 1), said("bo", "a", 1), said("ann", "b", 0), said("bo", "b", 1)]
    assert alpha_of(given) == krippendorff_alpha([[1, 1], [0, 1]])
    assert alpha_of([*given, said("cy", "a", None)]) == alpha_of(given)
