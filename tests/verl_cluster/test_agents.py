"""An agent's episodes through the real verl."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orbiter.train.errors import CallbackError
from orbiter.train.runlog import read_run
from orbiter.train.verl import RewardSpec
from tests.verl_cluster.rehearsing import processes_with, rehearsal
from tests.verl_cluster.shipped_agents import (
    branching,
    broken,
    dying,
    of_episode,
    two_turns,
    vowels_said,
)
from tests.verl_cluster.shipped_environment import Singing
from tests.verl_cluster.two_nodes import can_make_namespaces, two_nodes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]


async def test_an_environment_is_made_in_the_workers_and_trained_one_step_off(
    tmp_path: Path, cluster: str
) -> None:
    run = rehearsal(
        tmp_path,
        [],
        environment=Singing,
        batch_size=4,
        group_size=8,
        epochs=2,
        max_response_length=8,
        max_staleness=1,
        ray_address=cluster,
    )
    await run.train([{"word": word} for word in "abcdefghijklmnop"])
    history = run.history
    assert [row["step"] for row in history] == list(range(1, 9)), "no step is lost at the end"
    assert {row["turns"] for row in history} == {2}
    assert all(row["failed"] == 0 for row in history)
    assert all(0 <= row["reward/environment"] <= 1 for row in history)
    assert all(row["grad_norm"] > 0 for row in history)
    stale = [row["verl/training/off_policy/trajectory_staleness_worst/max"] for row in history]
    assert stale[0] == 0, "nothing is older than the first weights"
    assert max(stale) == 1, "the weights that sampled were one step old, and never older"
    assert len(read_run(tmp_path).samples) >= 8


TASKS = [{"text": text, "fails": text == "c"} for text in "abcdefgh"]


async def test_an_episode_that_branches_is_trained_and_one_that_fails_is_counted(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "a key")
    run = rehearsal(
        tmp_path,
        [RewardSpec("vowels", 1.0, of_episode)],
        agent=branching,
        batch_size=4,
        group_size=2,
        max_response_length=6,
        loss_aggregation="episode",
        ray_address=cluster,
        environment_variables=["SECRET_OF_TEST"],
    )
    await run.train(TASKS)
    history = run.history
    assert len(history) == 2
    assert sorted(row["failed"] for row in history) == [0, 0.25]
    assert sum(row.get("failed/agent_error", 0) for row in history) == 2
    assert {row["turns"] for row in history} == {3}
    assert {row["streams"] for row in history} == {2}
    assert all(row["grad_norm"] > 0 for row in history)
    assert max(row["verl/training/rollout_probs_diff_max"] for row in history) < 1e-4
    samples = read_run(tmp_path).samples
    outputs = [output for group in samples for output in group["outputs"]]  # type: ignore[attr-defined]
    assert len(outputs) == 16
    assert [len(o["turns"]) for o in outputs if o["error"] is None] == [3] * 14
    assert all(o["reward"] is None for o in outputs if o["error"])
    assert not holding(tmp_path, b"a key"), "a secret is in no file"


def holding(folder: Path, text: bytes) -> list[Path]:
    """The files that have a text in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text in path.read_bytes()]


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (broken, r"8 of 8 episodes failed.*the database is down"),
        (dying, r"the worker 0 of 1 that runs the agent died during its episodes"),
    ],
)
async def test_a_run_whose_agent_always_fails_ends_with_the_reason(
    tmp_path: Path, cluster: str, agent: Callable[[str], object], said: str
) -> None:
    run = rehearsal(
        tmp_path,
        [RewardSpec("vowels", 1.0, vowels_said)],
        agent=agent,
        batch_size=4,
        group_size=2,
        ray_address=cluster,
    )
    with pytest.raises(CallbackError, match=said):
        await run.train(["a", "b", "c", "d"])


@pytest.mark.skipif(not can_make_namespaces(), reason="needs root and `ip netns`")
async def test_a_job_on_two_nodes_plays_and_trains_on_both(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a socket's path must be short
    try:
        with two_nodes(folder, os.environ) as address:
            run = rehearsal(
                tmp_path,
                [RewardSpec("vowels", 1.0, vowels_said)],
                agent=two_turns,
                nodes=2,
                batch_size=4,
                group_size=2,
                max_response_length=6,
                ray_address=address,
            )
            await run.train(["a", "b", "c", "d"] * 2)
    finally:
        for left in processes_with(str(folder)):
            os.kill(left, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    assert len(run.history) == 2
    assert all(row["grad_norm"] > 0 for row in run.history)
    assert {row["turns"] for row in run.history} == {2}
    assert max(row["verl/training/rollout_probs_diff_max"] for row in run.history) < 1e-4
