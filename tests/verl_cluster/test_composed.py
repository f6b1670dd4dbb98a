"""What verl makes of our settings, by its own composed configuration; and what it is not told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.verl import RewardSpec
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.overrides import as_arguments, make_overrides
from tests.verl_cluster.rehearsing import PROMPTS, rehearsal
from tests.verl_cluster.shipped_rewards import vowels

TABLE = Path(__file__).with_name("composed.json")
REWARDS = [RewardSpec("vowels", 1.0, vowels)]

SETTINGS: dict[str, dict[str, Any]] = {
    f"{algorithm}{' + kl' * (kl > 0)}{' + lora' * (rank > 0)}, {nodes} x {gpus}": {
        "algorithm": algorithm,
        "kl_coef": kl,
        "lora_rank": rank,
        "nodes": nodes,
        "gpus_per_node": gpus,
    }
    for nodes, gpus in ((1, 2), (2, 8))
    for algorithm in ("grpo", "ppo")
    for kl, rank in ((0.0, 0), (0.01, 0), (0.01, 8))
}
"""Twelve: two algorithms, without and with a KL and adapters, on one node and on two."""


def composed(overrides: Mapping[str, object]) -> dict[str, Any]:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from orbiter.train.verl.cluster.inside.check import _leaves

    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=as_arguments(overrides))
    OmegaConf.resolve(config)
    return _leaves(config)


def changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of verl's configuration that differ from its own defaults."""
    run = rehearsal(
        Path("/shared/run"),
        REWARDS,
        **{
            "device": "cuda",
            "dtype": "float32",
            "ray_address": "http://head:8265",
            "batch_size": 32,
            **settings,
        },
    )
    layout = Layout(
        folder=Path("/shared/run/verl"),
        model="/shared/model",
        prompts=256,
        longest_prompt=512,
        validates=False,
    )
    plain = composed({"actor_rollout_ref.rollout.name": "vllm"})
    ours = composed(make_overrides(run.config, layout))
    return {key: value for key, value in sorted(ours.items()) if plain.get(key, "absent") != value}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SETTINGS)
def test_the_composed_config_of_a_setting_is_the_committed_one(name: str) -> None:
    table = json.loads(TABLE.read_text())
    assert changed(SETTINGS[name]) == {**table["every setting"], **table[name]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"verl_overrides": {"algorithm.adv_estimater": "rloo"}}, "did you mean 'algorithm.adv"),
        (
            {
                "verl_overrides": {
                    "algorithm.adv_estimator": "gpro",
                    "actor_rollout_ref.actor.strategy": "nope",
                    "critic.strategy": "fsdp",
                }
            },
            "adv_estimator=gpro is unknown to verl; did you mean 'grpo'.*strategy=nope is unknown",
        ),
        (
            {
                "verl_overrides": {
                    "actor_rollout_ref.actor.use_dynamic_bsz": False,
                    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 3,
                    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
                }
            },
            r"ppo_micro_batch_size_per_gpu=3 does not divide the samples of one GPU",
        ),
        (
            {"gpus_per_node": 3, "batch_size": 64},
            "batch_size=64 prompts per step, but there are only 32.*GPUs=3 does not divide",
        ),
        ({"device": "auto"}, "this machine has 0 GPUs.*rehearse with device='cpu'"),
        ({"verl_overrides": {"data.max_prompt_length": "ten"}}, "must be a number, got 'ten'"),
    ],
)
async def test_a_plan_that_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        await rehearsal(tmp_path, REWARDS, **settings).plan(PROMPTS)
    assert os.listdir(tmp_path) == [], "a plan writes nothing"


async def test_a_plan_shows_what_would_be_set_written_and_taken(tmp_path: Path) -> None:
    run = rehearsal(tmp_path, REWARDS, gpus_per_node=2, verl_overrides={"algorithm.gamma": 0.5})
    plan = await run.plan(PROMPTS)
    assert plan.composed["algorithm.gamma"] == 0.5, "the user's key wins"
    assert plan.composed["data.train_batch_size"] == 4
    assert plan.steps == 8
    said = str(plan)
    assert "1 x 2 CPU workers, 8 steps" in said
    assert "algorithm.adv_estimator='grpo'" in said
    assert str(tmp_path / "verl/train.parquet") in said
    assert os.listdir(tmp_path) == []


def make_table() -> dict[str, dict[str, Any]]:
    """Return the table of `composed.json`: what all settings share, and what each adds."""
    each = {name: changed(settings) for name, settings in SETTINGS.items()}
    first = next(iter(each.values()))
    shared = {k: v for k, v in first.items() if all(c.get(k, "absent") == v for c in each.values())}
    rest = {name: {k: v for k, v in c.items() if k not in shared} for name, c in each.items()}
    return {"every setting": shared, **rest}


if __name__ == "__main__":  # python -m tests.verl_cluster.test_composed: after a wanted change
    TABLE.write_text(json.dumps(make_table(), indent=1) + "\n")


@pytest.mark.filterwarnings("default")  # verl's imports warn
def test_sampling_ahead_is_a_mode_that_verl_ships_and_accepts() -> None:
    """`colocate_async` is the mode that `max_staleness` means; verl's own config takes its keys."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    made = changed({"max_staleness": 2, "max_importance": 4.0})
    expected = {
        "trainer.v1.trainer_mode": "colocate_async",
        "trainer.v1.colocate_async.num_warmup_batches": 2,
        "trainer.v1.sampler.max_off_policy_threshold": 3,
        "trainer.v1.sampler.max_off_policy_strategy": "wait",
        "algorithm.rollout_correction.rollout_is": "token",
        "algorithm.rollout_correction.rollout_is_threshold": 4.0,
    }
    assert {key: made.get(key) for key in expected} == expected
    assert "colocate_async" in TRAINER_REGISTRY
