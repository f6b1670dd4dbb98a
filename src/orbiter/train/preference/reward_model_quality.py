"""Measures how far a reward model can be trusted on held-out pairs, with intervals.

Pairs of the same task are not independent, so each number is averaged over the pairs of a task
first, and the intervals are over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from orbiter.train.errors import DataError
from orbiter.train.evaluation import Interval, mean_interval
from orbiter.train.seeding import sub_random

BINS = 10
"""Bins of equal width into which the confidences from 0.5 to 1 are sorted."""
RESAMPLES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair:
    """The scores of two answers to a task, the first of which is known to be better."""

    task: int
    chosen: float
    rejected: float
    chosen_reward: float = 1.0
    """The reward that made it the better one; 1 and 0 where only the order is known."""
    rejected_reward: float = 0.0
    answers: tuple[str, str] | None = None
    """A digest of each answer, which recognises an answer in several pairs; None if unknown."""

    @property
    def margin(self) -> float:
        """The score of the better answer minus that of the worse one."""
        return self.chosen - self.rejected

    @property
    def probability(self) -> float:
        """The model's probability that the better answer is better: sigmoid(margin)."""
        # math.exp raises from 710 on.
        return 1 / (1 + math.exp(-self.margin)) if self.margin > -700 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardQuality:
    """How well a reward model ranks held-out pairs."""

    pairs: int
    accuracy: Interval
    """Share of pairs whose better answer has the higher score; equal scores count one half."""
    loss: Interval
    """Negative log likelihood of the preferences, in nats a pair."""
    brier: Interval
    """Mean squared error of the probability; 0.25 for a model that always says one half."""
    calibration_error: Interval
    """Expected calibration error: how far the share of right rankings is from the confidence, on
    average over ten bins. Zero only with endless data; compare `calibration_error_by_chance`."""
    calibration_error_by_chance: float
    """What a perfectly calibrated model with these confidences would show on so few pairs."""
    agreement: Interval
    """Kendall's tau within a task: pairs of answers that scores and rewards order alike, minus
    those that they order differently, as a share of those whose rewards differ. Where all rewards
    are 1 and 0, only the given pairs count, as such rewards may order nothing else."""

    def measured(self) -> dict[str, float]:
        """Return the numbers by name, with the ends of their intervals."""
        numbers: dict[str, float] = {"pairs": float(self.pairs)}
        for name in ("accuracy", "loss", "brier", "calibration_error", "agreement"):
            interval: Interval = getattr(self, name)
            numbers[name] = interval.mean
            if name != "loss" and math.isfinite(interval.low) and math.isfinite(interval.high):
                numbers |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return numbers | {"calibration_error_by_chance": self.calibration_error_by_chance}

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy}, agreement {self.agreement}, Brier {self.brier}, "
            f"calibration error {self.calibration_error} "
            f"({self.calibration_error_by_chance:.3g} by chance alone)"
        )


def quality_of(pairs: Sequence[ScoredPair], *, confidence: float = 0.95) -> RewardQuality:
    """Return the quality of scores on pairs.

    Args:
        pairs: The pairs with their scores.
        confidence: The level of every interval.

    Raises:
        DataError: there are no pairs.
    """
    if not pairs:
        raise DataError("there are no pairs to measure a reward model on")
    tasks: dict[int, list[ScoredPair]] = {}
    for pair in pairs:
        tasks.setdefault(pair.task, []).append(pair)
    groups = list(tasks.values())

    def over_tasks(of_pair: Callable[[ScoredPair], float]) -> Interval:
        means = [fmean(map(of_pair, group)) for group in groups]
        return mean_interval(means, confidence=confidence)

    return RewardQuality(
        pairs=len(pairs),
        accuracy=over_tasks(_is_right),
        loss=over_tasks(lambda pair: _softplus(-pair.margin)),
        brier=over_tasks(lambda pair: (1 - pair.probability) ** 2),
        calibration_error=_calibration_interval(groups, confidence),
        calibration_error_by_chance=_by_chance(pairs),
        agreement=mean_interval([_agreement(group) for group in groups], confidence=confidence),
    )


def calibration_error(confidences: Sequence[float], right: Sequence[float]) -> float:
    """Return the expected calibration error of confidences in [0.5, 1].

        ECE = sum_b n_b / n |accuracy_b - confidence_b|

    Guo et al. 2017, equation 3, https://arxiv.org/abs/1706.04599.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for confidence, hit in zip(confidences, right, strict=True):
        # A confidence of exactly 1 belongs to the last bin.
        bucket = min(BINS - 1, int((confidence - 0.5) * 2 * BINS))
        bins[bucket].append((confidence, hit))
    return math.fsum(
        # n_b cancels: n_b / n |mean_b(hit - confidence)| = |sum_b(hit - confidence)| / n.
        abs(math.fsum(hit - confidence for confidence, hit in inside))
        for inside in bins
    ) / len(confidences)


def _is_right(pair: ScoredPair) -> float:
    return 0.5 if pair.margin == 0 else float(pair.margin > 0)


def _confidence(pair: ScoredPair) -> float:
    return max(pair.probability, 1 - pair.probability)


def _softplus(x: float) -> float:
    # log(1 + e^x), written so that the exponent is never positive.
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _calibration_interval(groups: Sequence[Sequence[ScoredPair]], confidence: float) -> Interval:
    """Return the calibration error with a percentile interval over resampled tasks."""

    def error(chosen: Sequence[Sequence[ScoredPair]]) -> float:
        pairs = [pair for group in chosen for pair in group]
        return calibration_error(list(map(_confidence, pairs)), list(map(_is_right, pairs)))

    estimate = error(groups)
    # Resampling a single task gives the same value every time, an interval of width 0.
    if len(groups) == 1:
        return Interval(estimate, -math.inf, math.inf, 1)
    draw = sub_random(0, "calibration error")
    resampled = sorted(error(draw.choices(groups, k=len(groups))) for _ in range(RESAMPLES))
    cut = int((1 - confidence) / 2 * RESAMPLES)
    low, high = resampled[cut], resampled[-1 - cut]
    # The error is biased upwards in a resample, so the percentiles may lie on one side of the
    # estimate.
    return Interval(estimate, min(low, estimate), max(high, estimate), len(groups))


def _by_chance(pairs: Sequence[ScoredPair]) -> float:
    """Return the mean calibration error of outcomes that are drawn from the confidences."""
    confidences = list(map(_confidence, pairs))
    draw = sub_random(0, "calibration by chance")
    return fmean(
        calibration_error(confidences, [float(draw.random() < each) for each in confidences])
        for _ in range(RESAMPLES // 10)
    )


def _agreement(group: Sequence[ScoredPair]) -> float:
    """Return Kendall's tau between the scores and the rewards of a task's answers."""
    rewards: dict[str, set[float]] = {}
    for pair in group:
        for answer, reward in zip(
            pair.answers or (), (pair.chosen_reward, pair.rejected_reward), strict=False
        ):
            rewards.setdefault(answer, set()).add(reward)
    # With 1 and 0 alone only the order within each pair is known: "2 stars over 1" and "5 over 4"
    # do not make the 2 better than the 4, and in A > B > C, B has both rewards.
    only_order = all((pair.chosen_reward, pair.rejected_reward) == (1.0, 0.0) for pair in group)
    if only_order or any(len(values) > 1 for values in rewards.values()):
        return fmean(2 * _is_right(pair) - 1 for pair in group)
    answers = {(pair.chosen, pair.chosen_reward) for pair in group}
    answers |= {(pair.rejected, pair.rejected_reward) for pair in group}
    listed = sorted(answers)
    signs = [
        (a_score > b_score) - (a_score < b_score)
        if a_reward > b_reward
        else (a_score < b_score) - (a_score > b_score)
        for index, (a_score, a_reward) in enumerate(listed)
        for b_score, b_reward in listed[:index]
        if a_reward != b_reward
    ]
    return fmean(signs)
