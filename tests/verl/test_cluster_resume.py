"""A resumed run on verl has every step once, whenever the first job was stopped."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest

from orbiter.train.runlog import RunLog, read_run
from orbiter.train.verl import VeRLConfig
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.run import ClusterRun


def stopped(folder: Path, *, start: int, logged: int, written: dict[int, list[int]]) -> ClusterRun:
    """Return a run to resume, whose log has `logged` steps and verl's files those of `written`."""
    layout = Layout(
        folder=folder / "verl", model="m", prompts=8, longest_prompt=9, validates=False,
        agent=True, start=start,
    )  # fmt: skip
    layout.samples.mkdir(parents=True)
    for begun, steps in written.items():
        lines = [{"step": n, "data": {"actor/pg_loss": 100 * begun + n}} for n in steps]
        file = layout.folder / f"metrics-{begun}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "da')
    with RunLog(folder, {}) as log:
        for step in range(1, logged + 1):
            log.write(step, {"pg_loss": float(step)})
    nothing = cast("Any", None)
    return ClusterRun(VeRLConfig(backend="verl", device="cpu"), layout, nothing, nothing)


def resumed(run: ClusterRun) -> list[tuple[int, float]]:
    with RunLog(run.folder, {}, resume_from=run.layout.start) as log:
        run.history += [dict(row) for row in read_run(run.folder).metrics]
        run.catch_up(log)
    rows = read_run(run.folder).metrics
    assert [row["step"] for row in run.history] == [row["step"] for row in rows]
    return [(int(row["step"]), row["pg_loss"]) for row in rows]


def test_a_step_that_verl_ended_while_it_was_stopped_is_logged(tmp_path: Path) -> None:
    run = stopped(tmp_path, start=6, logged=5, written={0: [1, 2, 3, 4, 5, 6, 7]})
    dump = run.layout.samples / "6.jsonl"
    dump.write_text(json.dumps({"prompt": "6?", "outputs": [{"text": "a", "reward": 0.5}]}) + "\n")
    assert resumed(run) == [(n, n) for n in range(1, 7)], "step 7 will be repeated"
    assert [group["prompt"] for group in read_run(tmp_path).samples] == ["6?"]
    assert not dump.exists()


def test_a_repeated_step_counts_as_the_later_start_has_it(tmp_path: Path) -> None:
    run = stopped(tmp_path, start=6, logged=2, written={0: [1, 2, 3, 4], 3: [4, 5, 6]})
    assert resumed(run) == [(1, 1), (2, 2), (3, 3), (4, 304), (5, 305), (6, 306)]


def test_a_step_without_metrics_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = stopped(tmp_path, start=6, logged=5, written={0: [1, 2, 3, 4, 5]})
    with caplog.at_level(logging.WARNING, "orbiter"):
        assert resumed(run) == [(n, n) for n in range(1, 6)]
    assert "before it wrote the metrics of steps [6]" in caplog.text
