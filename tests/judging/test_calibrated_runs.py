"""Evaluations and trainings say whether their judge is calibrated, and correct what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from orbiter.train.judging import calibrate
from orbiter.train.runlog.alarms import read_notes
from orbiter.train.synthesis.llm.judge import Judge
from orbiter.train.verl import RewardSpec, VeRLTrainer
from tests.agents.playing import spread, tiny, two_turns
from tests.judging.scripted import Scorer
from tests.judging.test_calibration import ERRORS, erring


@pytest.mark.parametrize("agent", [None, two_turns], ids=["answers", "episodes"])
async def test_an_evaluation_says_whether_its_judge_is_calibrated(
    agent: object, tmp_path: Path
) -> None:
    judge = Judge(Scorer(erring), "right")
    trained = VeRLTrainer(tiny(output_dir=tmp_path), [RewardSpec("quality", 1, judge)], agent=agent)
    found = await trained.evaluate(["a", "b", "c"])
    [note] = found.notes
    assert "judge 'quality' is not calibrated" in note
    assert note in str(found)
    assert "corrected/quality" not in found.extra

    await calibrate(judge, ERRORS)
    found = await trained.evaluate(["a", "b", "c"], samples=2)
    assert found.notes == ()
    low, mean = found["corrected/quality_low"], found["corrected/quality"]
    assert 0 <= low <= mean <= found["corrected/quality_high"] <= 1


async def test_a_training_with_an_uncalibrated_judge_says_so_in_its_folder(tmp_path: Path) -> None:
    for name, labels in (("without", None), ("with", ERRORS)):
        judge = Judge(Scorer(spread), "r")
        if labels is not None:
            await calibrate(judge, labels)
        trained = VeRLTrainer(tiny(output_dir=tmp_path / name), [RewardSpec("quality", 1, judge)])
        await trained.train(["a", "b"])
    assert len(read_notes(tmp_path / "without")) == 1
    assert read_notes(tmp_path / "with") == []
