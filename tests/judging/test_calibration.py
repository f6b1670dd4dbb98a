"""A judge is compared with labels, and what it measures is corrected from then on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.evaluation import Confusion, Judgement, judgement_lines, mean_interval
from orbiter.train.judging import Attempt, Calibration, GroupJudge, calibrate
from orbiter.train.synthesis.llm.judge import Judge
from tests.judging.scripted import Replies, Scorer, attempts_in, scores


def label(value: float, answer: str, *, kind: Any = "right", rater: str = "ann") -> Judgement:  # noqa: ANN401
    return Judgement(rater=rater, kind=kind, value=value, task="q", answers=(answer,))


def pair(value: float, first: str, second: str, task: str = "q") -> Judgement:
    return Judgement(rater="ann", kind="better", value=value, task=task, answers=(first, second))


def length(text: str) -> float:
    return min(1.0, len(text) / 10)


def erring(text: str) -> float:
    """Pass answers that begin with y, and those marked as an error of the judge the other way."""
    return float(text.startswith("y") != text.endswith("!"))


ERRORS = [
    *(label(1, f"yes {i}") for i in range(18)),
    *(label(1, f"yes {i}!") for i in range(2)),
    *(label(0, f"no {i}") for i in range(20)),
    *(label(0, f"no {i}!") for i in range(10)),
]


async def test_the_confusion_and_the_agreement_are_those_of_the_labels() -> None:
    judge = Judge(Scorer(erring), "right")
    found = await calibrate(judge, ERRORS)
    assert found.confusion == Confusion(18, 2, 10, 20)
    assert found.kappa == pytest.approx((0.76 - 0.488) / (1 - 0.488))
    assert found.alpha == pytest.approx(0.53, abs=0.01)
    assert judge.calibration is found
    assert found.rate(28, 50).mean == pytest.approx((0.56 + 2 / 3 - 1) / (0.9 + 2 / 3 - 1))
    text = str(found)
    assert "right answers: passes 18 of 20; wrong answers: passes 10 of 30" in text
    assert "Cohen's kappa: 0.53" in text


async def test_corrected_rates_hold_the_truth_where_the_judges_own_do_not() -> None:
    """100 studies from labels to rate; a judge that passes 30 % of the wrong answers."""
    held = naive = 0
    for study in range(100):
        rng = random.Random(study)

        def draw(rate: float, rng: random.Random = rng) -> tuple[float, str]:
            right = rng.random() < rate
            err = rng.random() < (0.1 if right else 0.3)
            return float(right), ("yes" if right else "no") + f" {rng.random()}" + "!" * err

        judge = Judge(Scorer(erring), "right")
        await calibrate(judge, [label(*draw(0.5)) for _ in range(60)])
        assert judge.calibration is not None
        judged = [erring(draw(0.2)[1]) for _ in range(100)]
        found = judge.calibration.corrected(judged)
        held += found.low <= 0.2 <= found.high
        own = mean_interval(judged)
        naive += own.low <= 0.2 <= own.high
    assert held >= 87, held  # binom.ppf(0.001, 100, 0.95)
    assert naive < 60, naive


async def test_ratings_are_corrected_by_inference_powered_by_the_predictions() -> None:
    labels = [label(value / 10, "x" * value, kind="rating") for value in range(1, 10) for _ in "ab"]
    found = await calibrate(Judge(Scorer(lambda text: min(1.0, len(text) / 20)), "r"), labels)
    assert len(found.labels) == 9, "the same answer labelled twice counts once"
    assert (found.confusion, found.kappa) == (None, None)
    corrected = found.mean([0.25] * 50)
    assert corrected.low < 0.5 < corrected.high
    assert found.corrected([0.25] * 50) == corrected
    with pytest.raises(DataError, match="labels of kind 'right'"):
        found.rate(1, 2)


class First(Scorer):
    """A judge that prefers what it sees first."""

    def reply(self, question: str, messages: Any) -> str:  # noqa: ANN401
        return scores(*(float(i == 0) for i in range(len(attempts_in(question)))))


PAIRS = [pair(float(i % 3 > 0), "long" * (1 + i % 3), "short", f"q{i}") for i in range(12)]


async def test_a_verdict_that_depends_on_the_sides_is_found() -> None:
    biased = await calibrate(GroupJudge(First(length), "better"), PAIRS)
    assert biased.position is not None
    assert (biased.position.pairs, biased.position.changed.mean) == (12, 1)
    assert biased.position.first is not None
    assert biased.position.first.mean == 1
    assert "verdict changes with the sides: 1" in str(biased)
    assert biased.kappa == pytest.approx(0)

    model = Scorer(length)
    fair = await calibrate(GroupJudge(model, "better"), PAIRS)
    assert fair.position is not None
    assert (fair.position.changed.mean, fair.position.first) == (0, None)
    assert fair.kappa == 1
    shown = [tuple(attempts_in(question)) for question in model.asked]
    assert len(shown) == 24
    assert all(shown[::-1].count(each[::-1]) for each in shown), "both ways round"

    alone = await calibrate(Judge(Scorer(length), "better"), PAIRS)
    assert (alone.position, alone.kappa) == (None, 1)


class Last(First):
    def reply(self, question: str, messages: Any) -> str:  # noqa: ANN401
        return scores(*(float(i > 0) for i in range(len(attempts_in(question)))))


async def test_a_judge_that_prefers_what_it_sees_last_is_not_said_to_prefer_the_first() -> None:
    found = await calibrate(GroupJudge(Last(length), "better"), PAIRS)
    assert found.position is not None
    assert found.position.first is not None
    assert found.position.first.mean == 0


async def test_labels_of_pairs_correct_no_single_scores() -> None:
    calibration = await calibrate(Judge(Scorer(length), "better"), PAIRS)
    for correct in (calibration.mean, calibration.corrected):
        with pytest.raises(DataError, match="labels of kind 'better' show which answer people"):
            correct([0.25] * 50)


async def test_a_label_that_its_rater_changed_counts_only_as_it_was_last() -> None:
    # The lines of a journal: "yes" was first labelled wrong by mistake, then right.
    journal = [label(0, "yes"), label(0, "no"), label(1, "yes"), label(1, "yes", rater="bob")]
    calibration = await calibrate(Judge(Scorer(erring), "right"), journal)
    assert calibration.confusion == Confusion(1, 0, 0, 1)
    ratings = [label(0.1, "yes", kind="rating"), label(0.9, "yes", kind="rating")]
    assert (await calibrate(Judge(Scorer(erring), "r"), ratings)).labels == (0.9,)


async def test_a_group_judge_is_calibrated_on_answers_to_the_same_task() -> None:
    found = await calibrate(GroupJudge(Scorer(erring), "right"), ERRORS)
    assert found.confusion == Confusion(18, 2, 10, 20)
    apart = [Judgement(rater="a", kind="right", value=1, task=t, answers=("x",)) for t in "ab"]
    with pytest.raises(DataError, match="no two labelled answers share their task"):
        await calibrate(GroupJudge(Scorer(erring), "right"), apart)


async def test_several_labellers_count_by_their_majority() -> None:
    labels = [
        *(label(value, "yes", rater=rater) for rater, value in zip("abc", (1, 1, 0), strict=True)),
        *(label(value, "tie", rater=rater) for rater, value in zip("ab", (1, 0), strict=True)),
        label(0, "no"),
        Judgement(rater="b", kind="right", value=None, task="q", answers=("z",), cause="skipped"),
    ]
    found = await calibrate(Judge(Scorer(erring), "right"), labels)
    assert (found.labels, found.confusion) == ((1, 0), Confusion(1, 0, 0, 1))


async def test_unreadable_verdicts_are_counted_and_count_in_nothing() -> None:
    class Half(Scorer):
        def reply(self, question: str, messages: Any) -> str:  # noqa: ANN401
            return "?" if "yes 3" in question else super().reply(question, messages)

    found = await calibrate(Judge(Half(erring), "right"), ERRORS)
    assert (found.unreadable, len(found.labels)) == (1, 49)
    assert "no readable verdict: 1 answers" in str(found)
    with pytest.raises(DataError, match="no readable verdict on any label"):
        await calibrate(Judge(Replies("?"), "right"), ERRORS[:3])


async def test_a_calibration_is_saved_and_read_again(tmp_path: Path) -> None:
    for judge, labels in (
        (Judge(Scorer(erring), "r"), ERRORS),
        (GroupJudge(First(length), "r"), PAIRS),
        (Judge(Scorer(length), "r"), PAIRS),
    ):
        found = await calibrate(judge, labels)
        found.save(tmp_path / "calibration.json")
        assert Calibration.load(tmp_path / "calibration.json") == found
    for content in ("{", "[]", "{}", json.dumps({"position": None})):
        (tmp_path / "calibration.json").write_text(content)
        with pytest.raises(DataError, match=r"calibration\.json does not contain a calibration"):
            Calibration.load(tmp_path / "calibration.json")


async def test_labels_can_be_a_file_and_must_be_of_one_kind(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b"\n".join(judgement_lines(ERRORS)) + b"\n")
    assert (await calibrate(Judge(Scorer(erring), "r"), path)).confusion == Confusion(18, 2, 10, 20)
    judge = Judge(Scorer(erring), "r")
    with pytest.raises(DataError, match="labels of one kind, got better and right"):
        await calibrate(judge, [ERRORS[0], PAIRS[0]])
    with pytest.raises(DataError, match="labels of one kind, got none with a value"):
        await calibrate(judge, [])
    with pytest.raises(ConfigError, match="takes a Judge or a GroupJudge, got function"):
        await calibrate(length, ERRORS)  # type: ignore[arg-type]
    assert judge.calibration is None

    async def down(messages: object) -> str:
        raise ConnectionError("no route")

    with pytest.raises(CallbackError, match="no route"):
        await calibrate(Judge(down, "r"), ERRORS)


async def test_attempts_are_judged_the_same_in_calibration_and_training() -> None:
    model = Scorer(erring)
    judge = Judge(model, "right")
    await calibrate(judge, ERRORS[:2] + ERRORS[-2:])
    asked = list(model.asked)
    await judge.rule_on([Attempt("q", label.answers[0]) for label in ERRORS[:2]])
    assert model.asked[len(asked) :] == asked[:2]
