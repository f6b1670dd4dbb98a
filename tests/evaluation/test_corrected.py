"""Corrected rates and means: by hand, by invariances, and by the coverage of their intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation import Confusion, Interval, corrected_mean, corrected_rate

STUDIES = 1_000
FEWEST = 924
"""Of 1,000 intervals that hold the truth with probability 0.95 at least this many do, but for one
such test in 5,000 (scipy: binom.ppf(2e-4, 1000, 0.95))."""


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("sensitivity", "specificity"), [(0.9, 0.9), (0.8, 0.95), (0.6, 0.7), (0.99, 0.6), (1.0, 1.0)]
)
@pytest.mark.parametrize("labels", [20, 100])
def test_the_interval_of_a_corrected_rate_holds_the_truth(
    rate: float, sensitivity: float, specificity: float, labels: int
) -> None:
    """The judge's own rate is as wrong as it likes; 1,000 studies with a judge of known errors."""
    generator = np.random.default_rng(int(1e6 * rate + 1e4 * sensitivity + 100 * specificity))
    n = 200
    passes = rate * sensitivity + (1 - rate) * (1 - specificity)
    passed = generator.binomial(n, passes, STUDIES).tolist()
    true_pass = generator.binomial(labels, sensitivity, STUDIES).tolist()
    true_fail = generator.binomial(labels, specificity, STUDIES).tolist()
    found = [
        corrected_rate(p, n, Confusion(tp, labels - tp, labels - tf, tf))
        for p, tp, tf in zip(passed, true_pass, true_fail, strict=True)
    ]
    held = sum(i.low <= rate <= i.high for i in found)
    assert held >= FEWEST, held
    assert all(0 <= i.low <= i.mean <= i.high <= 1 for i in found)


Study = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def verdicts(rate: float, sensitivity: float, specificity: float) -> Study:
    def draw(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.random(n) < rate
        right = generator.random(n) < np.where(labels, sensitivity, specificity)
        return labels * 1.0, np.where(right, labels, ~labels) * 1.0

    return draw


def ratings(noise: float, slope: float) -> Study:
    def draw(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.beta(2, 1, n)
        return labels, np.clip(slope * labels + generator.normal(0.2, noise, n), 0, 1)

    return draw


@pytest.mark.parametrize(
    ("study", "truth"),
    [
        (verdicts(0.7, 0.9, 0.8), 0.7),
        (verdicts(0.9, 0.95, 0.95), 0.9),
        (verdicts(0.1, 0.7, 0.99), 0.1),
        (verdicts(0.5, 0.5, 0.5), 0.5),
        (verdicts(0.6, 1.0, 1.0), 0.6),
        (ratings(0.1, 0.7), 2 / 3),
        (ratings(0.5, 0.2), 2 / 3),
        (ratings(0.05, -0.5), 2 / 3),
    ],
)
@pytest.mark.parametrize("labels", [20, 60])
def test_the_interval_of_a_corrected_mean_holds_the_truth(
    study: Study, truth: float, labels: int
) -> None:
    generator = np.random.default_rng(labels)
    held, widths = 0, []
    for _ in range(STUDIES):
        known, scores = study(generator, labels)
        _, judged = study(generator, 150)
        found = corrected_mean(judged.tolist(), known.tolist(), scores.tolist())
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert held >= FEWEST, held
    assert np.mean(widths) < 0.65


def test_a_good_judge_makes_the_interval_narrower_than_the_labels_alone() -> None:
    generator = np.random.default_rng(0)
    good: list[float] = []
    none: list[float] = []
    for _ in range(200):
        for held, quality in ((good, 0.97), (none, 0.5)):
            draw = verdicts(0.5, quality, quality)
            known, scores = draw(generator, 100)
            _, judged = draw(generator, 1000)
            found = corrected_mean(judged.tolist(), known.tolist(), scores.tolist())
            held.append(found.high - found.low)
    assert np.mean(good) < 0.7 * np.mean(none)


def test_the_estimate_is_that_of_rogan_and_gladen() -> None:
    # Sensitivity 0.9, specificity 0.8, 48 of 100 passed: (0.48 + 0.8 - 1) / 0.7 = 0.4.
    assert corrected_rate(48, 100, Confusion(90, 10, 20, 80)).mean == pytest.approx(0.4)
    with_many = corrected_rate(480_000, 10**6, Confusion(9 * 10**6, 10**6, 2 * 10**6, 8 * 10**6))
    assert with_many.low == pytest.approx(0.4, abs=2e-3)
    assert with_many.high == pytest.approx(0.4, abs=2e-3)


def test_a_perfect_judge_with_many_labels_is_left_as_it_is() -> None:
    found = corrected_rate(30, 100, Confusion(10**6, 0, 0, 10**6))
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.22, abs=0.02)
    assert found.high == pytest.approx(0.40, abs=0.02)


def test_a_judge_that_says_nothing_leaves_everything_possible() -> None:
    for confusion in (Confusion(5, 5, 5, 5), Confusion(2, 8, 8, 2), Confusion(2, 1, 1, 2)):
        found = corrected_rate(50, 100, confusion)
        assert (found.low, found.high) == (0, 1)
        assert 0 <= found.mean <= 1


def test_more_labels_and_less_confidence_give_narrower_intervals() -> None:
    def width(found: Interval) -> float:
        return found.high - found.low

    few, many = Confusion(9, 1, 2, 8), Confusion(90, 10, 20, 80)
    assert width(corrected_rate(48, 100, many)) < width(corrected_rate(48, 100, few))
    less = corrected_rate(48, 100, many, confidence=0.8)
    assert width(less) < width(corrected_rate(48, 100, many))


def test_a_judge_that_copies_the_labels_adds_what_it_saw() -> None:
    labels = [0.0, 1.0] * 50
    found = corrected_mean([1.0] * 900 + [0.0] * 100, labels, labels)
    assert found.mean == pytest.approx(0.9)


def test_impossible_counts_are_refused() -> None:
    good = Confusion(9, 1, 1, 9)
    for passed, n in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(DataError, match=r"passed must lie in \[0, n\]"):
            corrected_rate(passed, n, good)
    with pytest.raises(DataError, match="got 0 right and 10 wrong answers; label some"):
        corrected_rate(5, 10, Confusion(0, 0, 1, 9))
    with pytest.raises(ConfigError, match="confidence"):
        corrected_rate(5, 10, good, confidence=1)
    with pytest.raises(DataError, match="got 3 judged, 2 labels and 1 scores"):
        corrected_mean([1, 0, 1], [1, 0], [1])
    with pytest.raises(DataError, match=r"labels\[1\] must be a finite number"):
        corrected_mean([1, 0, 1], [1, float("nan")], [1, 0])
