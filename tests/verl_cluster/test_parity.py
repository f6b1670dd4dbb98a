"""The same numbers from verl's own functions as from ours, for the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.rollout import Rollout
from orbiter.train.formats.verl_rows import row
from orbiter.train.preference import RewardModel
from orbiter.train.rl import clipped_surrogate, gae, group_relative_advantage, kl_k3, whiten
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec
from orbiter.train.verl.cluster.data import Inputs, make_prompts, write_files
from orbiter.train.verl.cluster.inside.reward import load
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.overrides import (
    NEVER,
    Overrides,
    as_arguments,
    overlong_overrides,
)
from orbiter.train.verl.cluster.run import FOLDER, prepare
from orbiter.train.verl.overlong import with_overlong_penalty
from orbiter.train.verl.reward import score
from tests.preference.saved import saved_reward_model
from tests.verl_cluster.rehearsing import rehearsal
from tests.verl_cluster.shipped_rewards import same_prompt, vowels

pytestmark = pytest.mark.filterwarnings("default")  # verl's imports warn

P, G, T = 6, 4, 9


def streams(seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(P * G, T, generator=random, dtype=torch.float64) * scale

    length = torch.randint(1, T + 1, (P * G, 1), generator=random)
    old = -normal(1.0).abs()
    return {
        "mask": torch.arange(T)[None] < length,
        "reward": torch.randint(0, 4, (P, G), generator=random).double(),
        "value": normal(1.0),
        "old": old,
        "new": old + normal(0.4),
        "advantage": normal(2.0),
    }


def at_the_end(reward: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A sample's reward on its last token, as verl keeps it."""
    placed = torch.zeros(mask.shape, dtype=torch.float64)
    placed[torch.arange(len(mask)), mask.sum(1) - 1] = reward.flatten()
    return placed


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("scaled", [True, False])
def test_grpo_credits_a_sample_as_verl_does(seed: int, scaled: bool) -> None:
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    s = streams(seed)
    theirs, _ = compute_grpo_outcome_advantage(
        at_the_end(s["reward"], s["mask"]),
        s["mask"].double(),
        index=np.repeat(np.arange(P), G),
        norm_adv_by_std_in_grpo=scaled,
    )
    ours = group_relative_advantage(s["reward"], scale="std" if scaled else "none")
    assert torch.allclose(ours.flatten()[:, None] * s["mask"], theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.9), (1.0, 1.0)])
def test_ppo_credits_a_token_as_verl_does(seed: int, gamma: float, lam: float) -> None:
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    s = streams(seed)
    reward, mask = at_the_end(s["reward"], s["mask"]), s["mask"]
    theirs, returns = compute_gae_advantage_return(
        reward, s["value"], mask.double(), torch.tensor(gamma), torch.tensor(lam)
    )
    advantage, return_ = gae(reward, s["value"], mask, gamma=gamma, gae_lambda=lam)
    assert torch.allclose(whiten(advantage, mask) * mask, theirs * mask, rtol=0, atol=1e-6)
    assert torch.allclose(return_ * mask, returns * mask, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("ours", "theirs"), [("token", "token-mean"), ("sequence", "seq-mean-token-mean")]
)
def test_the_policys_loss_is_verls_without_its_dual_clip(seed: int, ours: str, theirs: str) -> None:
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    s = streams(seed)
    config = ActorConfig(
        strategy="fsdp2",
        rollout_n=G,
        use_dynamic_bsz=True,
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=NEVER,
    )
    new = s["new"].clone().requires_grad_()
    loss, said = compute_policy_loss_vanilla(
        s["old"], new, s["advantage"], s["mask"].double(), loss_agg_mode=theirs, config=config
    )
    loss.backward()
    mine = s["new"].clone().requires_grad_()
    mean: Any = ours
    result = clipped_surrogate(
        mine,
        s["old"],
        s["advantage"],
        s["mask"],
        clip_range=0.2,
        clip_range_high=0.28,
        aggregation=mean,
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
    assert result.clip_fraction.item() == pytest.approx(said["actor/pg_clipfrac"], abs=1e-6)
    assert new.grad is not None
    assert mine.grad is not None
    assert torch.allclose(mine.grad, new.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_kl_of_grpos_loss_is_verls_low_variance_one(seed: int) -> None:
    from verl.trainer.ppo.core_algos import kl_penalty

    s = streams(seed)
    theirs = kl_penalty(s["new"], s["old"], "low_var_kl") * s["mask"]
    assert torch.allclose(kl_k3(s["new"], s["old"], s["mask"]), theirs, rtol=1e-6, atol=1e-9)


REWARDS = [RewardSpec("vowels", 1.0, vowels), RewardSpec("starts", -0.25, same_prompt)]
OUTPUTS = ["aeiou", "xyz", "", "a b c", "äöü e", "Oo. "]


@pytest.mark.parametrize("manager", ["naive", "dapo"])
async def test_verls_reward_managers_give_what_we_give(tmp_path: Path, manager: str) -> None:
    item = TrajectoryItem("Say something.", "", task_id="q1")
    judge = manager_of({"reward.reward_manager.name": manager}, written(tmp_path, [item]))
    ours = await score(OUTPUTS, [item] * len(OUTPUTS), REWARDS)
    for place, output in enumerate(OUTPUTS):
        said = await judge.run_single(asked(item, output))
        assert said["reward_score"] == ours.total[place]
        for name, answers in ours.by_name.items():
            assert said["reward_extra_info"][f"reward/{name}"] == answers[place]


@pytest.mark.parametrize("buffer", [1, 4, 8])
async def test_verls_dapo_takes_off_what_we_take_off(tmp_path: Path, buffer: int) -> None:
    settings: dict[str, Any] = {
        "max_response_length": 8,
        "overlong_buffer": buffer,
        "overlong_penalty": 1.5,
    }
    item = TrajectoryItem("Say something.", "", task_id="q1")
    layout = written(tmp_path, [item], REWARDS, **settings)
    config = rehearsal(tmp_path, REWARDS, **settings).config
    judge = manager_of({**overlong_overrides(config)}, layout)
    outputs = ["aeiou"[: length % 5] + "x" * (length - length % 5) for length in range(1, 8)]
    ours = await score(outputs, [item] * len(outputs), REWARDS)
    # With the token that ends them.
    rollouts = [
        Rollout([1] + [2] * n, [False] + [True] * n, [0.0] * (n + 1), 1)
        for n in (len(output) + 1 for output in outputs)
    ]
    shaped = with_overlong_penalty(config, ours, rollouts)
    for output, total in zip(outputs, shaped.scores.total, strict=True):
        said = await judge.run_single(asked(item, output))
        assert said["reward_score"] == pytest.approx(total, abs=1e-6)  # verl's is float32
    assert min(shaped.metrics.values()) < 0


async def test_verls_worker_loads_a_reward_model_and_scores_as_here(tmp_path: Path) -> None:
    folder = await saved_reward_model(tmp_path / "rm")
    rewards = [RewardSpec("liked", 2.0, RewardModel(folder, device="cpu"))]
    item = TrajectoryItem("Say something.", "", task_id="q1")
    judge = manager_of({}, written(tmp_path / "run", [item], rewards))
    ours = await score(OUTPUTS, [item] * len(OUTPUTS), rewards)
    assert len(set(ours.total)) == len(OUTPUTS)
    for output, total in zip(OUTPUTS, ours.total, strict=True):
        said = await judge.run_single(asked(item, output))
        assert said["reward_score"] == pytest.approx(total, abs=1e-5)


async def test_verls_dataset_reads_our_rows(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_module
    from verl.trainer.ppo.utils import create_rl_dataset

    chat: list[dict[str, object]] = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look"}}]},
        {"role": "tool", "content": "Here."},
    ]
    items = [
        TrajectoryItem("Sing.", "la", 0.5, {"ground_truth": 7, "deep": {"a": [1, None]}}),
        TrajectoryItem("Where?", "Here.", messages=chat, task_id="q2"),
    ]
    layout = written(tmp_path, items, system_prompt="Be brief.")
    files = {"actor_rollout_ref.rollout.name": "vllm", "data.train_files": layout.train_file}
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=as_arguments(files))
    read = create_rl_dataset(
        config.data.train_files, config.data, tiny_tokenizer(), None, is_train=True, max_samples=-1
    )
    assert len(read) == 2
    first, second = read[0], read[1]
    assert first["raw_prompt"][0] == {"role": "system", "content": "Be brief."}
    assert first["raw_prompt"][1] == {"role": "user", "content": "Sing."}
    assert first["reward_model"]["ground_truth"] == "7"
    assert (first["index"], second["index"]) == (0, 1)
    assert "<tool_call>" in second["raw_prompt"][2]["content"]
    compute = load(str(layout.reward_file))
    answer = await compute(solution_str="aa", extra_info=second["extra_info"])
    assert answer["score"] == pytest.approx(1.0), "the whole item has come through: 'W' is no 'S'"


def manager_of(overrides: Overrides, layout: Layout) -> Any:  # noqa: ANN401 - verl's
    """Make verl's own reward manager with the module of rewards that a run has written."""
    from hydra import compose, initialize_config_module
    from verl.trainer.ppo.reward import load_reward_manager

    keys = {
        "actor_rollout_ref.rollout.name": "vllm",
        "reward.custom_reward_function.path": layout.reward_file,
        **overrides,
    }
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=as_arguments(keys))
    return load_reward_manager(config, tiny_tokenizer())


def asked(item: TrajectoryItem, output: str) -> Any:  # noqa: ANN401 - verl's
    """Return an output to an item, ended by its token, as verl passes it to a reward manager."""
    from verl import DataProto

    tokenizer = tiny_tokenizer()
    ids = torch.tensor([[*tokenizer(output).input_ids, tokenizer.eos_token_id]])
    mask = torch.ones(1, 3 + ids.shape[1], dtype=torch.long)
    fields = row(item, 0)
    return DataProto.from_dict(
        tensors={"prompts": torch.ones(1, 3).long(), "responses": ids, "attention_mask": mask},
        non_tensors={
            name: np.array([fields[name]], dtype=object)
            for name in ("data_source", "reward_model", "extra_info")
        },
    )


def written(
    folder: Path,
    items: list[TrajectoryItem],
    rewards: list[RewardSpec] = REWARDS,
    **settings: object,
) -> Layout:
    """The files that a run's job would read."""
    config = rehearsal(folder, rewards, **settings).config
    found = prepare(config, rewards, folder)
    prompts = make_prompts(config, found.model, items, None, config.system_prompt)
    layout = Layout(
        folder=folder / FOLDER,
        model=found.model.path,
        prompts=len(items),
        longest_prompt=prompts.longest,
        validates=False,
    )
    write_files(config, layout, Inputs(found.model, prompts, found.rewards, None, "no plan"))
    return layout
