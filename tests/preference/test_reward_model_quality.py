from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import DataError
from orbiter.train.preference.reward_model_quality import (
    ScoredPair,
    calibration_error,
    quality_of,
)


def pair(task: int, chosen: float, rejected: float) -> ScoredPair:
    return ScoredPair(task=task, chosen=chosen, rejected=rejected)


def drawn(count: int, *, stated: float, true: float, seed: int) -> list[ScoredPair]:
    """Return pairs whose true log odds are `true` times what the scores say over `stated`."""
    draw = random.Random(seed)
    pairs = []
    for task in range(count):
        odds = draw.gauss(0, 1.5)
        better = draw.random() < 1 / (1 + math.exp(-true * odds))
        margin = stated * odds if better else -stated * odds
        pairs.append(pair(task, margin, 0.0))
    return pairs


def test_the_numbers_of_four_pairs_are_those_by_hand() -> None:
    pairs = [pair(0, 2.0, 0.0), pair(1, 0.0, 1.0), pair(2, 0.5, 0.5), pair(3, 3.0, 1.0)]
    quality = quality_of(pairs)
    p = [1 / (1 + math.exp(-m)) for m in (2.0, -1.0, 0.0, 2.0)]
    assert quality.accuracy.mean == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert quality.brier.mean == pytest.approx(sum((1 - x) ** 2 for x in p) / 4)
    assert quality.loss.mean == pytest.approx(-sum(map(math.log, p)) / 4)
    assert quality.agreement.mean == pytest.approx((1 - 1 + 0 + 1) / 4)
    wrong = abs(2 * (1 - p[0])) + (1 - p[1]) + 0.0
    assert quality.calibration_error.mean == pytest.approx(wrong / 4)
    assert quality.pairs == 4


def test_the_pairs_of_a_task_count_as_one_value() -> None:
    many = [pair(0, 1.0, 0.0)] * 50 + [pair(1, 0.0, 1.0)]
    quality = quality_of(many)
    assert quality.accuracy.mean == 0.5
    assert quality.accuracy.n == 2
    assert quality.pairs == 51


def test_a_single_task_has_no_finite_interval_and_gives_no_ends() -> None:
    measured = quality_of([pair(0, 1.0, 0.0)]).measured()
    assert measured["accuracy"] == 1.0
    assert "accuracy_low" not in measured


@pytest.mark.parametrize("seed", range(3))
def test_only_an_overconfident_model_has_more_calibration_error_than_chance(seed: int) -> None:
    honest = quality_of(drawn(800, stated=1.0, true=1.0, seed=seed))
    boasting = quality_of(drawn(800, stated=4.0, true=1.0, seed=seed))
    assert honest.calibration_error.mean < 2 * honest.calibration_error_by_chance
    assert boasting.calibration_error.low > 2 * boasting.calibration_error_by_chance
    assert boasting.brier.mean > honest.brier.mean + 0.01
    assert boasting.accuracy == honest.accuracy


@given(st.lists(st.tuples(st.floats(0.5, 1.0), st.sampled_from([0.0, 0.5, 1.0])), min_size=1))
def test_the_calibration_error_is_that_of_plain_bins(rows: list[tuple[float, float]]) -> None:
    bins: dict[int, list[tuple[float, float]]] = {}
    for confidence, right in rows:
        bins.setdefault(min(9, int((confidence - 0.5) * 20)), []).append((confidence, right))
    want = sum(
        len(inside)
        / len(rows)
        * abs(sum(r for _, r in inside) / len(inside) - sum(c for c, _ in inside) / len(inside))
        for inside in bins.values()
    )
    have = calibration_error([c for c, _ in rows], [r for _, r in rows])
    assert have == pytest.approx(want, abs=1e-12)


def test_agreement_is_kendalls_tau_of_graded_rewards() -> None:
    scores, rewards = [3.0, 1.0, 2.0, 0.0], [1.0, 0.7, 0.3, 0.0]
    pairs = [
        ScoredPair(
            task=0, chosen=scores[i], rejected=scores[j],
            chosen_reward=rewards[i], rejected_reward=rewards[j],
        )
        for i, j in ((0, 3), (1, 2))
    ]  # fmt: skip
    # Of the six pairs, only (1, 2) is in the wrong order.
    assert quality_of(pairs).agreement.mean == pytest.approx((5 - 1) / 6)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="no pairs"):
        quality_of([])


def test_huge_margins_do_not_overflow() -> None:
    quality = quality_of([pair(0, 1e4, -1e4), pair(1, -1e4, 1e4)])
    assert quality.brier.mean == pytest.approx(0.5)
    assert quality.loss.mean == pytest.approx(1e4)


def test_a_chain_of_preferences_is_in_full_agreement_with_scores_in_its_order() -> None:
    def of(chosen: str, rejected: str) -> ScoredPair:
        score = {"a": 2.0, "b": 1.0, "c": 0.0}
        return ScoredPair(
            task=0, chosen=score[chosen], rejected=score[rejected], answers=(chosen, rejected)
        )

    # b is better than c and worse than a, so it must not be compared with itself.
    assert quality_of([of("a", "b"), of("b", "c")]).agreement.mean == 1
    assert quality_of([of("b", "a"), of("c", "b")]).agreement.mean == -1
    assert quality_of([of("a", "b"), of("c", "b")]).agreement.mean == 0


def test_pairs_without_scores_are_not_compared_with_each_other() -> None:
    def of(chosen: float, rejected: float) -> ScoredPair:
        return ScoredPair(task=0, chosen=chosen, rejected=rejected)

    # The stars of four answers, scored as they deserve: "2 over 1" and "5 over 4".
    assert quality_of([of(2.0, 1.0), of(5.0, 4.0)]).agreement.mean == 1
