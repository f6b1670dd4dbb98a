from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from orbiter.train.engine.models.load import load_model
from orbiter.train.errors import CallbackError, StorageError
from orbiter.train.preference import RewardModel
from orbiter.train.runlog import read_run
from orbiter.train.trainer import TrainerState
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from tests.children import run_child
from tests.preference.saved import saved_reward_model
from tests.verl_cluster.rehearsing import PROMPTS, processes_with, rehearsal
from tests.verl_cluster.shipped_rewards import broken, same_prompt, vowels

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]

VOWELS = RewardSpec("vowels", 1.0, vowels)
LEARNING = {"batch_size": 8, "group_size": 8, "epochs": 8}
"""32 steps of 8 prompts x 8 samples, as the local backend's own test of learning takes them."""


async def local_curve(seed: int) -> list[float]:
    """The rewards of the same script with one word changed."""
    config = VeRLConfig(
        model="tiny",
        device="cpu",
        learning_rate=2e-3,
        max_response_length=16,
        seed=seed,
        **LEARNING,  # type: ignore[arg-type] # whole numbers
    )
    trainer = VeRLTrainer(config, [VOWELS])
    await trainer.train(PROMPTS)
    return [row["reward"] for row in trainer.history]


def crossing(curve: list[float], level: float = 0.5) -> int:
    """The first step whose reward is above the level."""
    return next(step for step, reward in enumerate(curve, start=1) if reward > level)


@pytest.fixture(scope="module")
def curves() -> dict[int, list[float]]:
    """The rewards of each step, by the seed of the run: filled by the tests, in their order."""
    return {}


async def test_grpo_learns_the_vowel_rule_on_a_local_ray(
    tmp_path: Path, curves: dict[int, list[float]]
) -> None:
    run = rehearsal(tmp_path, [VOWELS], **LEARNING)
    metrics = await run.train(PROMPTS)
    rewards = [row["reward"] for row in run.history]
    curves[0] = rewards
    assert run.state is TrainerState.TRAINED
    assert [row["step"] for row in run.history] == list(range(1, 33))
    assert rewards[0] < 0.3
    assert rewards[-1] > 0.9
    assert metrics.reward == pytest.approx(sum(rewards[-4:]) / 4)
    assert metrics["reward/vowels"] == pytest.approx(metrics.reward)
    assert {"loss", "entropy", "grad_norm", "length", "reward_std"} <= run.history[0].keys()
    # What sampled is what is trained: the logprobs of both agree, after every sync of weights.
    differences = [row["verl/training/rollout_probs_diff_max"] for row in run.history]
    assert max(differences) < 1e-4
    held_out = await run.evaluate(PROMPTS[:2], samples=16)
    assert held_out.reward is not None
    assert held_out.reward > 0.9, "the merged model is the trained one"
    logged = read_run(tmp_path)
    assert [row["reward"] for row in logged.metrics] == rewards
    assert {row["step"] for row in logged.samples} == set(range(1, 33))
    assert len(logged.samples[0]["outputs"]) == 8  # type: ignore[arg-type] # a group
    saved = await run.save(tmp_path / "saved")
    assert load_model(saved, device="cpu").model.num_parameters() > 0
    with pytest.raises(StorageError, match="set resume=True"):
        await rehearsal(tmp_path, [VOWELS], **LEARNING).train(PROMPTS)


async def test_a_cancelled_run_leaves_nothing_behind_and_is_taken_up_on_a_cluster(
    tmp_path: Path, cluster: str, curves: dict[int, list[float]]
) -> None:
    settings = {**LEARNING, "seed": 1, "save_every": 6}
    run = rehearsal(tmp_path, [VOWELS], **settings)
    task = asyncio.ensure_future(run.train(PROMPTS))
    while len(run.history) < 8 and not task.done():  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.state is TrainerState.VALIDATED
    await asyncio.sleep(2)
    assert processes_with(str(tmp_path)) == [], "the job and all that it started are gone"
    first = read_run(tmp_path).metrics
    again = rehearsal(tmp_path, [VOWELS], **settings, resume=True, ray_address=cluster)
    await again.train(PROMPTS)
    rows = read_run(tmp_path).metrics
    assert [row["step"] for row in rows] == list(range(1, 33)), "no step twice, none missing"
    assert rows[:6] == first[:6], "what was over stays as it was"
    assert "succeeded" in (tmp_path / "verl/job.log").read_text().lower()
    curves[1] = [row["reward"] for row in rows]
    assert curves[1][-1] > 0.9


async def test_the_learning_curves_of_verl_and_of_this_machine_overlap(
    tmp_path: Path, cluster: str, curves: dict[int, list[float]]
) -> None:
    run = rehearsal(tmp_path, [VOWELS], **LEARNING, seed=2, ray_address=cluster)
    await run.train(PROMPTS)
    curves[2] = [row["reward"] for row in run.history]
    here = [await local_curve(seed) for seed in range(3)]
    there = [curves[seed] for seed in sorted(curves)]
    assert len(there) == 3, "the tests above have run"
    for place in range(0, 32, 4):
        low = min(min(curve[place : place + 4]) for curve in here)
        high = max(max(curve[place : place + 4]) for curve in here)
        seen = fmean(fmean(curve[place : place + 4]) for curve in there)
        assert low - 0.1 <= seen <= high + 0.1, f"steps {place + 1} to {place + 4}"
    reached = [sorted(map(crossing, curves)) for curves in (here, there)]
    assert max(reached[0][0], reached[1][0]) <= min(reached[0][-1], reached[1][-1]) + 2


async def test_ppo_trains_a_critic_and_pays_for_the_kl_on_two_workers(
    tmp_path: Path, cluster: str
) -> None:
    run = rehearsal(
        tmp_path,
        [VOWELS],
        algorithm="ppo",
        kl_coef=0.05,
        gpus_per_node=2,
        group_size=2,
        minibatch_size=4,
        eval_every=2,
        eval_dataset=PROMPTS[:2],
        ray_address=cluster,
    )
    metrics = await run.train(PROMPTS[:8])
    assert len(run.history) == 2
    assert run.history[0]["kl"] == pytest.approx(0, abs=1e-5), "the policy is still the reference"
    assert run.history[1]["kl"] != 0
    assert {"value", "vf_loss", "explained_variance", "eval/reward"} <= run.history[1].keys()
    assert metrics["vf_loss"] > 0
    shards = list((tmp_path / "verl/checkpoints/global_step_2/actor").glob("model_*_rank_*.pt"))
    assert len(shards) == 2, "two workers, two parts, one merged model"
    assert len(await run.generate(["Sing."])) == 1


async def test_adapters_come_back_alone_or_fused_and_every_reward_has_its_metric(
    tmp_path: Path, cluster: str
) -> None:
    liked = RewardModel(await saved_reward_model(tmp_path / "liked"), device="cpu")
    rewards = [VOWELS, RewardSpec("starts", 0.5, same_prompt), RewardSpec("liked", 0.3, liked)]
    run = rehearsal(tmp_path, rewards, lora_rank=4, kl_coef=0.01, ray_address=cluster)
    await run.train(PROMPTS[:8])
    row = run.history[-1]
    assert row["reward/starts"] == 1, "the task's item has reached the worker"
    of_model = 0.3 * row["reward/liked"]
    assert row["reward"] == pytest.approx(row["reward/vowels"] + 0.5 + of_model, abs=1e-6)
    assert [each["reward/liked"] for each in run.history] == pytest.approx(
        await mean_scores(liked, tmp_path), abs=1e-4
    ), "verl's workers score as this process does"
    assert run.history[0]["kl"] == pytest.approx(0, abs=1e-5)
    adapter = await run.save(tmp_path / "adapter")
    assert json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] == 8
    fused = load_file(await run.save(tmp_path / "fused", merge=True) / "model.safetensors")
    again = load_model(adapter, device="cpu").model.state_dict()
    base = load_model("tiny", device="cpu").model.state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(fused[name], again[name], atol=1e-6)
    assert not torch.equal(fused[name], base[name])


async def mean_scores(model: RewardModel, folder: Path) -> list[float]:
    """Score the samples of a run here, and return the mean of each step."""
    answers: dict[int, list[TrajectoryItem]] = {}
    for group in read_run(folder).samples:
        # verl keeps the prompt as text, in the form that the template gives it.
        prompt = next(prompt for prompt in set(PROMPTS) if prompt in str(group["prompt"]))
        outputs: list[dict[str, str]] = group["outputs"]  # type: ignore[assignment] # JSON
        answers.setdefault(int(str(group["step"])), []).extend(
            TrajectoryItem(prompt, output["text"]) for output in outputs
        )
    assert [len(items) for _, items in sorted(answers.items())] == [16, 16]
    return [fmean(await model.score(items)) for _, items in sorted(answers.items())]


async def test_a_reward_that_raises_in_a_worker_comes_back_named(
    tmp_path: Path, cluster: str
) -> None:
    run = rehearsal(tmp_path, [VOWELS, RewardSpec("broken", 1.0, broken)], ray_address=cluster)
    with pytest.raises(CallbackError, match="reward 'broken' on item") as raised:
        await run.train(PROMPTS)
    assert "ZeroDivisionError: no reward for" in str(raised.value)
    assert run.state is TrainerState.ERROR
    assert "STOPPED" in (tmp_path / "verl/job.log").read_text()


async def test_the_example_runs_as_it_is(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples/08_verl_rehearsal.py"
    script = await asyncio.to_thread(
        run_child, [sys.executable, example], cwd=tmp_path, timeout=900, check=True
    )
    said = script.stdout.splitlines()
    assert said[0] == "verl 0.9.1 on a local Ray: 1 x 1 CPU workers, 4 steps"
    assert said[1].startswith("reward 0.0")
    assert said[2] == "the model: vowels"
    source = (tmp_path / "rehearsal/verl/reward_0.py").read_text()
    assert "VOWELS = frozenset(" in source, "a script's function has come with what it uses"
