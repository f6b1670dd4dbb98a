from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import ConfigError, DataError, StorageError
from orbiter.train.report import Exam, Story, Task, keep_story, write_report
from orbiter.train.report.document import RunFolder
from orbiter.train.report.lineage import read_lineage
from orbiter.train.report.story import read_story
from orbiter.train.report.training import POINTS, Training
from orbiter.train.runlog import RunLog
from orbiter.train.runlog.alarms import keep_alarms, keep_notes
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from tests.report.folders import evolution, story, training


def document(folder: Path) -> dict[str, Any]:
    return Training(folder, "run").document(max_bytes=10**6)


def test_every_metric_and_time_stands_over_its_steps(tmp_path: Path) -> None:
    with RunLog(tmp_path, {"algorithm": "ppo"}) as log:
        log.write(1, {"reward": 0.123456789})
        log.write(2, {"reward": float("nan"), "eval/reward": 0.5})
        log.time(2, {"seconds": 2.0})
        log.write(3, {"reward": float("-inf")})
    doc = document(tmp_path)
    assert doc["kind"] == "PPO"
    assert doc["steps"] == [1, 2, 3]
    assert doc["series"] == {
        "reward": [0.12346, "nan", "-inf"],
        "eval/reward": [None, 0.5, None],
        "seconds": [None, 2.0, None],
    }
    assert (doc["spread"], doc["gains"], doc["groups"]) == (None, [], [])
    assert doc["environment"]["python"]


def test_a_very_long_run_is_averaged_and_a_fault_in_it_stays_visible(tmp_path: Path) -> None:
    with RunLog(tmp_path, {}) as log:
        for step in range(2_500):
            log.write(step, {"loss": float("nan") if step == 1_000 else float(step)})
    doc = document(tmp_path)
    assert doc["every"] == 3
    assert len(doc["steps"]) <= POINTS
    assert doc["series"]["loss"][:2] == [1.0, 4.0]
    assert doc["series"]["loss"].count("nan") == 1


def test_the_picture_of_the_rewards_holds_every_sample(tmp_path: Path) -> None:
    spread = document(training(tmp_path, steps=150))["spread"]
    assert len(spread["counts"]) == 60
    assert sum(map(sum, spread["counts"])) == 150 * 3 * 4
    assert spread["steps"][0] == 1
    early, late = spread["counts"][0], spread["counts"][-1]
    assert sum(early[:10]) > sum(early[10:])
    assert sum(late[:10]) < sum(late[10:])


def test_the_first_fifth_is_compared_with_the_last_by_prompt(tmp_path: Path) -> None:
    gains = document(training(tmp_path, steps=50))["gains"]
    assert [row["what"] for row in gains] == ["reward", "reward: call", "reward: brief"]
    before, after, gain = (gains[0][name] for name in ("before", "after", "gain"))
    assert before[0] == pytest.approx(0.11, abs=0.1)
    assert after[0] == pytest.approx(0.91, abs=0.1)
    assert gain[0] == pytest.approx(after[0] - before[0], abs=0.02)
    assert 0.5 < gain[1] < gain[0] < gain[2] < 1.1
    assert gain[3] == 15  # prompts, not groups
    assert gains[2]["gain"][:3] == [0, 0, 0]


def test_validations_are_compared_with_the_intervals_that_were_measured(tmp_path: Path) -> None:
    with RunLog(tmp_path, {}) as log:
        low_and_high = {"eval/reward_low": 0.25, "eval/reward_high": 0.75}
        log.write(1, {"eval/reward": 0.5, "eval/loss": 2.0, **low_and_high})
        log.write(2, {"eval/reward": 0.625, "eval/loss": 1.0})
    rows = {row["what"]: (row["before"], row["after"]) for row in document(tmp_path)["validations"]}
    assert rows["validation reward"] == ([0.5, 0.25, 0.75, None], [0.625, None, None, None])
    assert rows["validation loss"][1][0] == 1.0


def test_a_folder_of_several_runs_is_one_document_in_the_order_of_their_beginning(
    tmp_path: Path,
) -> None:
    for number, name in enumerate(("z", "a", "m")):
        training(tmp_path / name, steps=3)
        path = tmp_path / name / "environment.json"
        began = {"began": f"2026-01-0{number + 1}T00:00:00+00:00"}
        path.write_text(json.dumps(json.loads(path.read_bytes()) | began))
    training(tmp_path / "z" / "best", steps=3)  # a folder of weights is no run
    story(tmp_path)
    evolution(tmp_path / "prompt")
    doc = RunFolder(tmp_path).document()
    assert [part["name"] for part in doc["trainings"]] == ["z", "a", "m"]
    assert [part["name"] for part in doc["evolutions"]] == ["prompt"]
    assert doc["title"] == "A run to look at"
    assert [step["name"] for step in doc["ledger"]] == ["captured", "filtered"]


def test_exams_have_intervals_and_paired_differences(tmp_path: Path) -> None:
    story(training(tmp_path, steps=3))
    doc = RunFolder(tmp_path).document()
    before, after = doc["exams"]["rows"]
    assert before["gain"] is None
    assert before["score"][0] == 0.25
    assert after["gain"][0] == pytest.approx(0.55)
    assert 0 < after["gain"][1] < 0.55 < after["gain"][2]
    assert doc["tasks"][0] == {
        "prompt": "Ask 0",
        "answers": [{"score": 0, "text": "no"}, {"score": 0, "text": "f(a=1)"}],
        "name": "t0",
        "expected": "f(a=1)",
    }


def test_of_too_many_tasks_those_whose_scores_differ_come_first(tmp_path: Path) -> None:
    exams = [
        Exam(name=name, scores=[0.0] * 900 + [score] * 100, outputs=["x" * 200] * 1_000)
        for name, score in (("a", 0.0), ("b", 1.0))
    ]
    keep_story(tmp_path, Story(tasks=[Task(prompt=str(i)) for i in range(1_000)], exams=exams))
    doc = RunFolder(tmp_path).document()
    assert len(doc["tasks"]) == 300
    assert {str(i) for i in range(900, 1_000)} < {task["prompt"] for task in doc["tasks"]}
    assert doc["tasks_in_all"] == 1_000


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"exams": [Exam(name="a", scores=[1.0])] * 2}, ConfigError, "a different name"),
        ({"against": "b"}, ConfigError, "not one of the exams"),
        (
            {"exams": [Exam(name="a", scores=[1.0]), Exam(name="b", scores=[1.0, 2.0])]},
            DataError,
            "one score for each task",
        ),
        ({"exams": [Exam(name="a", scores=[])]}, DataError, "one score for each task"),
        (
            {"exams": [Exam(name="a", scores=[1.0], outputs=["x", "y"])]},
            DataError,
            "2 outputs for 1 scores",
        ),
    ],
)
def test_a_story_that_does_not_come_out_is_refused(
    wrong: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Story(**wrong)


def test_a_story_is_read_back_and_a_damaged_one_named(tmp_path: Path) -> None:
    told = story(tmp_path)
    assert read_story(tmp_path) == told
    (tmp_path / "story.json").write_text('{"exams": 3}')
    with pytest.raises(StorageError, match=r"story\.json is not the story"):
        read_story(tmp_path)


def test_a_captured_data_set_begins_the_ledger(tmp_path: Path) -> None:
    with TrajectoryDataset(path=tmp_path / "traces.jsonl") as dataset:
        for number in range(4):
            dataset.capture(TrajectoryItem(f"q{number}", "a", float(number % 2), agent="bot"))
        dataset.capture(TrajectoryItem("q", "a", episode_id="e", step=0))
        dataset.capture(TrajectoryItem("q", "a", episode_id="e", step=1))
        dataset.assign_reward("e", 1.0)
        dataset.capture(TrajectoryItem("q", "a"))
    training(tmp_path, steps=2)
    (step,) = RunFolder(tmp_path).document()["ledger"]
    assert step["name"] == "captured (traces)"
    assert step["kept"] == 6
    assert step["dropped"] == {"waiting for a reward": 1}
    assert step["note"] == "mean reward 0.667, 4 of bot"


def test_an_evolution_is_told_as_a_family_with_what_changed(tmp_path: Path) -> None:
    doc = read_lineage(evolution(tmp_path), "prompt")
    by_name = {member["name"]: member for member in doc["members"]}
    best = doc["members"][doc["best"]]
    assert best["name"] == "child 1"
    assert doc["members"][best["parents"][0]]["name"] == "child 0"
    assert by_name["child 0"]["diff"] == [["=", "Answer"], ["+", " well"], ["=", ". Be brief."]]
    pieces = by_name["child 1"]["diff"]
    assert "".join(text for kind, text in pieces if kind != "-") == "Answer well.\nBe brief.\nNow."
    for name, text in (("child 0", "Answer. Be brief."), ("child 1", "Answer well. Be brief.")):
        old = "".join(text for kind, text in by_name[name]["diff"] if kind != "+")
        assert old == text
    assert by_name["child 2"]["error"] == "ValueError: Be brief."
    assert by_name["initial 0"]["text"] == "Answer."
    assert doc["trials"] == [[1, 0.25, 0.25], [2, 0.5, 0.5], [3, 0.625, 0.625], [4, 0.75, 0.75]]
    assert (doc["evaluations"], doc["failures"], doc["cost"]) == (5, 1, 5.0)


def test_a_long_evolution_fits_a_page(tmp_path: Path) -> None:
    path = evolution(tmp_path, words="word " * 2_000)
    line = path.read_bytes().splitlines()[3]
    with path.open("ab") as file:
        for slot in range(10, 600):
            file.write(line.replace(b'"slot":0', b'"slot":%d' % slot) + b"\n")
    doc = read_lineage(path, "long")
    assert len(json.dumps(doc)) < 120_000
    assert doc["members_in_all"] == 595
    assert doc["members"][doc["best"]]["name"] == "child 1"


def test_a_folder_without_a_run_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no run: neither"):
        write_report(tmp_path)
    with pytest.raises(StorageError, match="holds no run"):
        write_report(tmp_path / "nowhere")
    training(tmp_path, steps=2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"[]\n")
    with pytest.raises(StorageError, match=r"metrics\.jsonl:3"):
        write_report(tmp_path)


def test_alarms_and_notes_of_a_run_are_in_its_document(tmp_path: Path) -> None:
    sample = {"prompt": "p", "output": "<script>alert(1)</script>", "proxy": 1.0, "gold": 0.0}
    alarm = {"step": 7, "kind": "falls", "message": "the reward rises", "samples": [sample]}
    with RunLog(tmp_path, {"algorithm": "grpo"}) as log:
        log.write(1, {"gold/proxy": 0.5, "gold/right": 0.25})
    assert (document(tmp_path)["alarms"], document(tmp_path)["notes"]) == ([], [])
    keep_alarms(tmp_path, [alarm])
    keep_notes(tmp_path, ["judge 'quality' is not calibrated"])
    doc = document(tmp_path)
    assert doc["alarms"] == [alarm]
    assert doc["notes"] == ["judge 'quality' is not calibrated"]
    assert doc["series"]["gold/right"] == [0.25]
    page = write_report(tmp_path).read_text("utf-8")
    assert "not calibrated" in page
    assert "<script>alert(1)" not in page
