"""Unchanged agents of frameworks through the real verl."""

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


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients require keys; the policy reads none."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "none")


async def test_a_step_of_every_api_of_every_framework_is_trained_on_verl(
    tmp_path: Path, cluster: str
) -> None:
    from tests.verl_cluster.shipped_frameworks import NAMES, any_framework, different

    run = rehearsal(
        tmp_path,
        [RewardSpec("different", 1.0, different)],
        agent=any_framework,
        batch_size=len(NAMES),
        group_size=2,
        max_response_length=12,
        ray_address=cluster,
        environment_variables=["OPENAI_API_KEY", "ANTHROPIC_API_KEY"],
    )
    await run.train([{"framework": name, "text": "2 + 3?"} for name in NAMES])
    (row,) = run.history
    outputs = [o for group in read_run(tmp_path).samples for o in group["outputs"]]  # type: ignore[attr-defined]
    assert len(outputs) == 2 * len(NAMES)
    # The policy answers at random and is always cut off. Several frameworks raise then, which is a
    # limit and no failure; one answer without any text may make another one give up.
    errors = [output["error"] for output in outputs if output["stop_reason"] == "agent_error"]
    assert len(errors) <= 1, errors
    cut_off = [str(o["error"]) for o in outputs if o["stop_reason"] == "max_response"]
    assert row["stopped/max_response"] == len(cut_off) >= 4
    assert any("LengthFinishReasonError" in error for error in cut_off), cut_off
    assert any("max_output_tokens" in error for error in cut_off), cut_off
    assert row["turns"] >= 1
    assert row["grad_norm"] > 0
    assert row["verl/training/rollout_probs_diff_max"] < 1e-4
