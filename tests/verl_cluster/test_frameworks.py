"""Unchanged agents of frameworks through the real verl, where they are installed beside it.

`make test-verl` installs none of them; see docs/guide/cluster.md for the environment that has all.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from orbiter.train.runlog import read_run
from orbiter.train.verl import RewardSpec
from tests.verl_cluster.rehearsing import rehearsal

FRAMEWORKS = ("openai", "anthropic", "pydantic_ai", "agents", "langgraph", "langchain_openai")
MISSING = [name for name in FRAMEWORKS if find_spec(name) is None]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


async def test_unchanged_agents_of_frameworks_are_trained_on_verl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.verl_cluster.shipped_frameworks import NAMES, any_framework, different

    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "none")
    run = rehearsal(
        tmp_path,
        [RewardSpec("different", 1.0, different)],
        agent=any_framework,
        batch_size=len(NAMES),
        group_size=2,
        max_response_length=12,
        environment_variables=["OPENAI_API_KEY", "ANTHROPIC_API_KEY"],
    )
    await run.train([{"framework": name, "text": "2 + 3?"} for name in NAMES])
    (row,) = run.history
    outputs = [o for group in read_run(tmp_path).samples for o in group["outputs"]]  # type: ignore[attr-defined]
    # The policy answers at random, so an agent may raise; the message shows which, and why.
    assert row["failed"] <= 0.25, [output["error"] for output in outputs if output["error"]]
    assert row["turns"] >= 1
    assert row["grad_norm"] > 0
    assert row["verl/training/rollout_probs_diff_max"] < 1e-4
