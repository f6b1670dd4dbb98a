"""Trackers get a copy of every metric, and none of them can end a run."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from orbiter.train import CallbackError, ConfigError, RunLog, SFTConfig, read_run
from orbiter.train.runlog import Tracked, Tracker
from tests.children import run_child


class Remembered:
    """A tracker of one's own: three methods."""

    def __init__(self, *, fails_at: int = 0) -> None:
        self.fails_at = fails_at
        self.run: Tracked | None = None
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def start(self, run: Tracked) -> None:
        self.run = run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise OSError("the service is down")
        self.seen.append((step, dict(metrics)))

    def finish(self) -> None:
        self.finished += 1


def test_a_tracker_of_one_s_own_gets_every_metric(tmp_path: Path) -> None:
    tracker = Remembered()
    assert isinstance(tracker, Tracker)
    with RunLog(tmp_path / "one", {"seed": 3}, trackers=[tracker]) as log:
        log.write(1, {"loss": 0.5, "kl": None})
        log.write(2, {"loss": 0.25})
    assert tracker.seen == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
    assert tracker.finished == 1
    assert tracker.run is not None
    assert (tracker.run.name, tracker.run.config) == ("one", {"seed": 3})


def test_the_run_keeps_its_name_when_it_is_taken_up_again(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        tracker = Remembered()
        RunLog(tmp_path / "one", {}, trackers=[tracker]).close()
        assert tracker.run is not None
        ids.append(tracker.run.id)
    assert ids[0] == ids[1]
    assert Tracked(folder=tmp_path / "two", config={}).id != ids[0]


def test_one_that_fails_is_left_out_and_the_others_and_the_folder_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Remembered(fails_at=2), Remembered()
    with caplog.at_level(logging.WARNING), RunLog(tmp_path, {}, trackers=[bad, good]) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1.0})
    assert [step for step, _ in bad.seen] == [1]
    assert [step for step, _ in good.seen] == [1, 2, 3]
    assert len(read_run(tmp_path).metrics) == 3
    assert caplog.text.count("the service is down") == 1


def test_one_that_cannot_start_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    class Refused(Remembered):
        def start(self, run: Tracked) -> None:
            raise ValueError("no such account")

    first = Remembered()
    with pytest.raises(CallbackError, match="'Refused' raised ValueError: no such account"):
        RunLog(tmp_path, {}, trackers=[first, Refused()])
    assert first.finished == 1
    RunLog(tmp_path, {}).close()  # nobody holds the folder


def test_no_secret_reaches_a_tracker(tmp_path: Path) -> None:
    tracker = Remembered()
    RunLog(tmp_path, {"api_key": "canary"}, trackers=[tracker]).close()
    assert tracker.run is not None
    assert "canary" not in str(tracker.run.config)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["wanb"], "did you mean 'wandb'"),
        ("wandb", "must be a list"),
        ([3], "start, write and finish"),
        ([Remembered], "start, write and finish"),
    ],
)
def test_a_config_refuses_what_is_no_tracker(wanted: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SFTConfig(output_dir="x", trackers=wanted)


def test_trackers_need_a_folder_since_the_folder_has_it_all_anyway() -> None:
    with pytest.raises(ConfigError, match="trackers needs output_dir="):
        SFTConfig(trackers=["wandb"])


WRITE = """
import sys
from orbiter.train import RunLog
with RunLog("run", {"seed": 3}, trackers=[sys.argv[1]]) as log:
    log.write(1, {"reward": 0.5, "loss": 2.0})
    log.write(2, {"reward": 0.75, "loss": float("nan")})
"""
# What each tracker's own package finds afterwards: the values of "reward", in their order.
READ = {
    "trackio": """
import sqlite3, json, pathlib
(file,) = pathlib.Path("trackio").glob("*.db")
rows = sqlite3.connect(file).execute("select metrics from metrics order by step").fetchall()
print(json.dumps([json.loads(row[0])["reward"] for row in rows]))
""",
    "tensorboard": """
import json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator("run/tensorboard")
events.Reload()
tensors = events.Tensors("reward")
print(json.dumps([event.tensor_proto.float_val[0] for event in tensors]))
""",
    "mlflow": """
import json, mlflow
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("orbiter-train")
(run,) = client.search_runs([experiment.experiment_id])
assert run.data.params == {"seed": "3"}, run.data.params
print(json.dumps([m.value for m in client.get_metric_history(run.info.run_id, "reward")]))
""",
    # A log of protobuf records, whose values stand in it as JSON behind their names.
    "wandb": r"""
import json, pathlib, re
(file,) = pathlib.Path("run/wandb").glob("offline-run-*/*.wandb")
values = re.findall(rb"reward[^\d]{1,6}(0\.\d+)", file.read_bytes())  # a history, a summary
print(json.dumps(sorted({float(value) for value in values})))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_each_known_tracker_has_what_was_written(name: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "HOME": str(tmp_path),
    }

    def python(*words: str) -> str:
        command = [sys.executable, "-c", *words]
        return run_child(command, cwd=tmp_path, env=environment, check=True).stdout

    python(WRITE, name)
    assert json.loads(python(READ[name]).splitlines()[-1]) == [0.5, 0.75]
    assert len(read_run(tmp_path / "run").metrics) == 2


def test_a_tracker_that_fails_is_closed_at_once(tmp_path: Path) -> None:
    bad = Remembered(fails_at=1)
    with RunLog(tmp_path, {}, trackers=[bad]) as log:
        log.write(1, {"loss": 1.0})
        assert bad.finished == 1
    assert bad.finished == 1


def test_a_resumed_run_passes_no_step_twice(tmp_path: Path) -> None:
    tracker = Remembered()
    with RunLog(tmp_path, {}, trackers=[tracker]) as log:
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": float(step)})
    with RunLog(tmp_path, {}, resume_from=2, trackers=[tracker]) as log:
        for step in (3, 4, 5):
            log.write(step, {"loss": float(step)})
    assert [step for step, _ in tracker.seen] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in read_run(tmp_path).metrics] == [1, 2, 3, 4, 5]


def test_a_name_that_mlflow_refuses_is_renamed_and_stays_unique() -> None:
    from mlflow.utils.validation import _validate_metric_name

    from orbiter.train.runlog.trackers_known import Mlflow

    tracker = Mlflow()
    names = ["reward/call", "a(b)", "a[b]", "a=b", "größe", "../up", "/root", "", "x" * 400, "."]
    accepted = [tracker._accepted(name) for name in names]
    for name in accepted:
        _validate_metric_name(name)  # type: ignore[no-untyped-call] # MLflow has no types here
    assert len(set(accepted)) == len(names)
    assert accepted[0] == "reward/call"
    assert [tracker._accepted(name) for name in names] == accepted
