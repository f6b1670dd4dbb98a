"""Unchanged agents of frameworks through the real verl: they learn, and are validated."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import pytest

from orbiter.train.engine.models.load import load_model
from orbiter.train.runlog import read_run
from orbiter.train.verl import RewardSpec
from tests.verl_cluster.rehearsing import rehearsal
from tests.verl_cluster.shipped_agents import vowels_said

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


async def test_agents_of_four_frameworks_and_one_that_branches_learn_and_are_validated(
    tmp_path: Path,
) -> None:
    from tests.verl_cluster.shipped_frameworks import TWO_TURNS, two_turns_of

    texts = ["Sing.", "Speak.", "Say something.", "Go.", "Hum.", "Shout.", "Talk.", "Tell me."]
    tasks = [{"framework": name, "text": text} for text in texts for name in TWO_TURNS]
    run = rehearsal(
        tmp_path,
        [RewardSpec("vowels", 1.0, vowels_said)],
        agent=two_turns_of,
        batch_size=5,
        group_size=8,
        epochs=3,
        learning_rate=3e-3,
        max_response_length=8,
        loss_aggregation="episode",
        eval_every=8,
        eval_dataset=[{"framework": name, "text": "Answer."} for name in TWO_TURNS],
    )
    await run.train(tasks)
    history = run.history
    rewards = [row["reward"] for row in history]
    assert rewards[0] < 0.2, rewards
    assert rewards[-1] > 0.8, rewards
    assert len(history) == 24
    assert max(row["verl/training/rollout_probs_diff_max"] for row in history) < 1e-4
    assert max(row["failed"] for row in history) < 0.1
    assert max(row["streams"] for row in history) > 1, "the sub-agent has a stream of its own"
    last = [group for group in read_run(tmp_path).samples if int(str(group["step"])) > 16]
    for name in TWO_TURNS:
        mine = [
            output["reward"]
            for group in last
            for output in group["outputs"]  # type: ignore[attr-defined]
            if output["turns"] and name in str(output["turns"][0]["asked"])
        ]
        assert len(mine) >= 8, name
        assert fmean(value for value in mine if value is not None) > 0.6, name
    validated = {int(row["step"]): row for row in history if "eval/reward" in row}
    assert sorted(validated) == [8, 16, 24], "every eighth step"
    assert all(row["eval/failed"] == 0 for row in validated.values())
    assert validated[16]["eval/turns"] == pytest.approx(2.4), "four of 2 turns, one of 4"
    assert validated[24]["eval/reward"] > 0.7
    best = max(validated.values(), key=lambda row: row["eval/reward"])
    assert f'"step": {best["step"]}' in (tmp_path / "verl/best/best.json").read_text()
    assert load_model(tmp_path / "best", device="cpu").model.num_parameters() > 0


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
