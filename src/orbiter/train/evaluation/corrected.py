"""Rates and means measured by a judge that errs, corrected by what is known of its errors.

A judge that passes 10 % of the bad answers and fails 20 % of the good ones reports a wrong rate
however many answers it sees. Labels of people on a few answers say how it errs, and the interval
must contain the uncertainty of that too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import NamedTuple

from orbiter.train.checks import is_finite_number
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation.interval import Interval, finite_values
from orbiter.train.evaluation.student import student_quantile


class Confusion(NamedTuple):
    """Counts of a judge's verdicts against labels of people, for right and wrong."""

    true_pass: int
    """Right answers that the judge passes."""
    false_fail: int
    """Right answers that it fails."""
    false_pass: int
    """Wrong answers that it passes."""
    true_fail: int
    """Wrong answers that it fails."""

    @property
    def right(self) -> int:
        """Answers that are right by the labels."""
        return self.true_pass + self.false_fail

    @property
    def wrong(self) -> int:
        """Answers that are wrong by the labels."""
        return self.false_pass + self.true_fail

    @property
    def sensitivity(self) -> float | None:
        """Share of the right answers that the judge passes; None without right answers."""
        return self.true_pass / self.right if self.right else None

    @property
    def specificity(self) -> float | None:
        """Share of the wrong answers that the judge fails; None without wrong answers."""
        return self.true_fail / self.wrong if self.wrong else None


def corrected_rate(
    passed: int, n: int, confusion: Confusion, *, confidence: float = 0.95
) -> Interval:
    """Return the true share of right answers among n, of which the judge passed `passed`.

        p = (q + sp - 1) / (se + sp - 1)

    Rogan and Gladen 1978, https://doi.org/10.1093/oxfordjournals.aje.a112510, with the interval of
    Lang and Reiczigel 2014, https://doi.org/10.1016/j.prevetmed.2013.09.015, section 2.3: it adds
    pseudo-counts to the three shares and counts the uncertainty of each. The labelled answers must
    be a sample of right ones and of wrong ones; their proportion does not matter.

    Returns:
        The estimate with its interval, both within [0, 1]. If the judge is not better than chance,
        its verdicts say nothing, and the interval is all of [0, 1].

    Raises:
        DataError: no labelled answer is right, or none is wrong, or the counts are impossible.
    """
    z = _z(confidence)
    if n < 1 or not 0 <= passed <= n:
        raise DataError(f"passed must lie in [0, n] with n at least 1, got {passed} of {n}")
    if not confusion.right or not confusion.wrong:
        raise DataError(
            f"a corrected rate needs labels of both kinds, got {confusion.right} right and "
            f"{confusion.wrong} wrong answers; label some of the missing kind"
        )
    # One pseudo-count for each outcome of the labels, and z^2 / 2 for the judged share.
    n_right, n_wrong, n_judged = confusion.right + 2, confusion.wrong + 2, n + z * z
    sensitivity = (confusion.true_pass + 1) / n_right
    specificity = (confusion.true_fail + 1) / n_wrong
    judged = (passed + z * z / 2) / n_judged
    power = sensitivity + specificity - 1
    var_right = sensitivity * (1 - sensitivity) / n_right
    var_wrong = specificity * (1 - specificity) / n_wrong
    # The estimate divides by `power`; where that may be 0 it may be anything.
    if power <= z * math.sqrt(var_right + var_wrong):
        return Interval(_within(0.5 if power <= 0 else (judged + specificity - 1) / power), 0, 1, n)
    rate = (judged + specificity - 1) / power
    # Lang and Reiczigel's shift of the centre, which the skew of the quotient needs.
    shift = 2 * z * z * (rate * var_right - (1 - rate) * var_wrong)
    spread = math.sqrt(
        judged * (1 - judged) / n_judged + rate**2 * var_right + (1 - rate) ** 2 * var_wrong
    )
    low, high = rate + shift - z * spread / power, rate + shift + z * spread / power
    plain = _plain_rate(passed / n, confusion)
    # The estimate is the plain one, moved into the interval if the shift left it outside.
    estimate = min(max(_within(plain), _within(low)), _within(high))
    return Interval(estimate, _within(low), _within(high), n)


def corrected_mean(
    judged: Sequence[float],
    labels: Sequence[float],
    judged_labelled: Sequence[float],
    *,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean label of all answers, of which people labelled a few and a judge all.

        theta = mean(k f(judged)) + mean(label - k f(labelled))

    Prediction-powered inference: Angelopoulos et al. 2023, Science 382:669, algorithm 1,
    https://doi.org/10.1126/science.adi6000, with the weight k of PPI++, equation 6,
    https://arxiv.org/abs/2311.01453, cut to [0, 1]: a judge that says nothing gets no weight. Two
    departures keep small samples honest: Student's t in place of the normal quantile, and two
    pseudo-residuals, one range of the labels above and one below 0, because a judge that agreed on
    all of 20 answers may still err on one in ten.

    Args:
        judged: The judge's scores of the answers that nobody labelled.
        labels: Labels of other answers, drawn at random from the same population.
        judged_labelled: The judge's scores of those.
        confidence: Probability that the interval contains the true mean.

    Raises:
        DataError: fewer than two labels or judged answers, or lists of different lengths.
    """
    _z(confidence)
    unlabelled = finite_values(judged, "judged")
    known, scores = (
        finite_values(labels, "labels"),
        finite_values(judged_labelled, "judged_labelled"),
    )
    if len(known) != len(scores) or len(known) < 2 or len(unlabelled) < 2:
        raise DataError(
            "a corrected mean needs at least two judged answers, and two labelled ones with a "
            f"score each; got {len(unlabelled)} judged, {len(known)} labels and {len(scores)} "
            "scores of them"
        )
    n, more = len(known), len(unlabelled)
    mean_label, mean_score = fmean(known), fmean(scores)
    covariance = sum(
        (y - mean_label) * (f - mean_score) for y, f in zip(known, scores, strict=True)
    ) / (n - 1)
    spread = _variance([*scores, *unlabelled])
    # PPI++'s optimal weight: the regression of labels on scores, shrunk by n / N.
    weight = min(1.0, max(0.0, covariance / ((1 + n / more) * spread))) if spread > 0 else 0.0
    residuals = [y - weight * f for y, f in zip(known, scores, strict=True)]
    mean = weight * fmean(unlabelled) + fmean(residuals)
    # With equal labels there is no range, so their size is used, or 1.
    reach = max(known) - min(known) or max(map(abs, known)) or 1.0
    # The two pseudo-residuals add 2 reach^2 to the sum of squares, and 2 to the count.
    squares = _variance(residuals) * (n - 1) + 2 * reach**2
    error = math.sqrt(weight**2 * _variance(unlabelled) / more + squares / (n + 1) / n)
    half = student_quantile((1 + confidence) / 2, n - 1) * error
    return Interval(mean, mean - half, mean + half, n + more)


def _plain_rate(judged: float, confusion: Confusion) -> float:
    sensitivity, specificity = confusion.sensitivity, confusion.specificity
    assert sensitivity is not None
    assert specificity is not None
    power = sensitivity + specificity - 1
    return (judged + specificity - 1) / power if power > 0 else 0.5


def _variance(values: Sequence[float]) -> float:
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def _z(confidence: float) -> float:
    if not is_finite_number(confidence) or not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie in (0, 1), got {confidence!r}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
