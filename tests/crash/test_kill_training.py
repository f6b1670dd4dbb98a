"""Training processes that die of SIGKILL, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.children import started_child
from tests.crash.journals import finished
from tests.verl.teachers import save, wider_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

KILLED = -9
SETTINGS = {
    "model": "tiny",
    "epochs": 1,
    "batch_size": 2,
    "group_size": 4,
    "max_response_length": 6,
    "learning_rate": 1e-2,
    "ppo_epochs": 2,
    "minibatch_size": 4,
    "kl_coef": 0.05,
    "save_every": 1,
    "resume": True,
    "progress": False,
}
"""Three steps of four updates each, but the last, which has two: most kills fall inside a step."""

PREFERENCE = {
    "model": "tiny",
    "epochs": 3,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "save_every": 1,
    "resume": True,
    "progress": False,
}
"""Nine updates on pairs."""

MOMENTS = [
    ("before update", 1),
    ("reward", 3),
    ("after update", 1),
    ("before update", 2),
    ("after update", 2),
    ("file operation", 1),
    ("before update", 3),
    ("after update", 1),
    ("file operation", 9),
    ("after update", 2),
]
"""Each link of a chain resumes what the one before left, and dies at its own moment."""


class Runs:
    """The process that forks the runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(
        self,
        folder: Path,
        kill: object = None,
        agent: bool = False,
        preference: bool = False,
        **settings: object,
    ) -> dict[str, Any]:
        base = PREFERENCE if preference else SETTINGS
        config = base | settings | {"output_dir": str(folder)}
        assert self.process.stdin
        assert self.process.stdout
        order = {"config": config, "kill": kill, "agent": agent, "preference": preference}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        ended: dict[str, Any] = json.loads(self.process.stdout.readline())
        return ended


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    with started_child(
        [sys.executable, "-m", "tests.crash.training_runs"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        yield Runs(process)
        assert process.stdin
        process.stdin.close()
        process.wait(timeout=60)


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_run_killed_ten_times_ends_as_one_that_was_never_interrupted(
    runs: Runs, tmp_path: Path, algorithm: str, lora_rank: int
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "lora_rank": lora_rank}
    whole = runs(tmp_path / "whole", **settings)
    assert whole["code"] == 0
    deaths = [runs(tmp_path / "killed", kill, **settings)["code"] for kill in MOMENTS]
    assert deaths == [KILLED] * len(MOMENTS)
    assert runs(tmp_path / "killed", **settings) == whole


@pytest.mark.parametrize("over", ["vocabulary", "sampled"])
def test_a_distillation_killed_six_times_ends_as_one_that_was_not(
    runs: Runs, tmp_path: Path, over: str
) -> None:
    teacher = save(wider_model(), tmp_path / "teacher")
    settings: dict[str, Any] = {
        "algorithm": "distill", "teacher": str(teacher), "distill_over": over,
    }  # fmt: skip
    whole = runs(tmp_path / "whole", **settings)
    assert whole["code"] == 0
    deaths = [runs(tmp_path / "killed", kill, **settings)["code"] for kill in MOMENTS[:6]]
    assert deaths == [KILLED] * 6
    assert runs(tmp_path / "killed", **settings) == whole


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_a_run_on_preferences_killed_six_times_ends_as_one_that_was_not(
    runs: Runs, tmp_path: Path, method: str, lora_rank: int
) -> None:
    settings: dict[str, Any] = {"preference": True, "method": method, "lora_rank": lora_rank}
    whole = runs(tmp_path / "whole", **settings)
    assert whole["code"] == 0
    begin = [] if method == "orpo" else [("after the reference", 1)]
    moments = [
        *begin,
        ("before update", 1), ("after update", 1), ("file operation", 5), ("before update", 2),
        ("file operation", 12), ("after update", 2),
    ]  # fmt: skip
    deaths = [runs(tmp_path / "killed", kill, **settings)["code"] for kill in moments]
    assert deaths == [KILLED] * len(moments)
    assert runs(tmp_path / "killed", **settings) == whole


def played(folder: Path) -> Counter[tuple[str, int]]:
    """Count how often each episode was begun; one that a kill interrupts is begun again."""
    lines = folder.with_suffix(".played").read_text(encoding="utf-8").splitlines()
    return Counter(tuple(json.loads(line)) for line in lines)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_kill_between_two_turns_loses_no_finished_episode(
    runs: Runs, tmp_path: Path, algorithm: str
) -> None:
    settings: dict[str, Any] = {"algorithm": algorithm, "kl_coef": 0.0}
    whole = runs(tmp_path / "whole", agent=True, **settings)
    assert whole["code"] == 0
    folder, kept = tmp_path / "killed", dict[tuple[str, int], int]()
    for kill in (("between turns", 4), ("after update", 1), ("between turns", 3)):
        assert runs(folder, kill, agent=True, **settings)["code"] == KILLED
        done = [(r["turns"][0]["messages"][0]["content"], r["number"]) for r in finished(folder)]
        assert len(done) >= (kill[1] if kill[0] == "between turns" else 0)
        for episode in done:
            kept.setdefault(episode, played(folder)[episode])
    resumed = runs(folder, agent=True, **settings)
    assert resumed["code"] == 0
    for name in ("weights", "samples"):
        assert resumed["result"][name] == whole["result"][name], name
    assert len(played(folder)) == 5 * 4
    assert len(kept) >= 6
    assert {episode: played(folder)[episode] for episode in kept} == kept, "not played again"
    assert not (folder / "episodes").exists()


def test_a_kill_at_any_file_operation_of_a_save_is_resumed_from_by_itself(
    runs: Runs, tmp_path: Path
) -> None:
    # Three steps, each followed by a checkpoint.
    settings: dict[str, Any] = {"ppo_epochs": 1, "minibatch_size": 0}
    whole = runs(tmp_path / "whole", **settings)
    assert runs(tmp_path / "begun", ("before update", 3), **settings)["code"] == KILLED
    counted = shutil.copytree(tmp_path / "begun", tmp_path / "counted")
    operations = runs(counted, ("file operation", 0), **settings)["result"]["file_operations"]
    assert operations >= 10
    for number in range(1, operations + 1):
        folder = shutil.copytree(tmp_path / "begun", tmp_path / f"at{number}")
        assert runs(folder, ("file operation", number), **settings)["code"] == KILLED, number
        assert runs(folder, **settings) == whole, f"killed at file operation {number}"
        shutil.rmtree(folder)
