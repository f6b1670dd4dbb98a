"""Each algorithm trains, is reachable from the config, and maps to verl's keys or is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from orbiter.train.errors import ConfigError, TrainingError
from orbiter.train.trainer.config import NotInVerl, VerlKeys
from orbiter.train.verl import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.cluster.overrides import make_overrides
from tests.verl.test_cluster_config import config as on_verl
from tests.verl.test_cluster_config import layout

ACTOR = "actor_rollout_ref.actor"
VARIANTS: list[dict[str, Any]] = [
    *({"algorithm": name} for name in VeRLAlgorithm if name != "distill"),
    {"algorithm": "distill", "teacher": "tiny"},
    {"algorithm": "grpo", "ratio": "sequence", "loss_aggregation": "sequence"},
    {"algorithm": "grpo", "scale_rewards": False, "loss_aggregation": "constant"},
    {"algorithm": "grpo", "kl_coef": 0.1, "kl_estimator": "k2"},
    {"algorithm": "ppo", "kl_coef": 0.1, "kl_estimator": "k3"},
    {"algorithm": "cispo", "clip_range": 0.1, "clip_range_high": 4.0},
    {"algorithm": "sapo", "loss_aggregation": "sequence"},
]


def vowels(output: str) -> float:
    return sum(character in "aeiou" for character in output) / max(1, len(output))


def test_the_table_has_every_algorithm() -> None:
    assert list(ALGORITHMS) == list(VeRLAlgorithm)
    assert len({algorithm.title for algorithm in ALGORITHMS.values()}) == len(ALGORITHMS)


def test_no_algorithm_runs_as_another_one_on_verl() -> None:
    taught = {"teacher": "/t", "distill_over": "sampled", "device": "auto"}
    written = [
        algorithm.verl_overrides(
            on_verl(
                algorithm=name,
                loss_aggregation="sequence",
                **(taught if name == "distill" else {}),
            )
        )
        for name, algorithm in ALGORITHMS.items()
    ]
    assert all(written.count(each) == 1 for each in written)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
async def test_every_algorithm_trains_off_policy_and_moves_the_weights(
    settings: dict[str, Any],
) -> None:
    config = VeRLConfig(
        model="tiny",
        device="cpu",
        batch_size=2,
        group_size=4,
        minibatch_size=4,
        ppo_epochs=2,
        learning_rate=1e-3,
        max_response_length=8,
        progress=False,
        **settings,
    )
    trainer = VeRLTrainer(config, [RewardSpec("vowels", 1.0, vowels)])
    policy = await trainer.policy()
    before = torch.cat([p.detach().flatten().clone() for p in policy.model.parameters()])
    metrics = await trainer.train(["Say something.", "Sing."])
    after = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    assert not torch.equal(before, after)
    assert metrics.reward is not None
    assert metrics.extra["approx_kl"] > 0
    assert ("kl" in metrics.extra) == (config.kl_coef > 0)


async def test_a_run_with_several_updates_and_flat_rewards_ends_with_the_documented_error() -> None:
    config = VeRLConfig(
        model="tiny", device="cpu", batch_size=1, group_size=2, ppo_epochs=2, target_kl=0.1,
        max_response_length=4, max_flat_steps=1, progress=False,
    )  # fmt: skip
    trainer = VeRLTrainer(config, [RewardSpec("none", 1.0, lambda _: 0.0)])
    with pytest.raises(TrainingError, match="nothing can be learned"):
        await trainer.train(["Sing."])


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"algorithm": "rloo"}, {"algorithm.adv_estimator": "rloo"}),
        ({"algorithm": "cispo"}, {f"{ACTOR}.policy_loss.loss_mode": "cispo"}),
        (
            {"algorithm": "sapo", "loss_aggregation": "sequence", "tau_negative": 1.2},
            {f"{ACTOR}.policy_loss.loss_mode": "sapo", f"{ACTOR}.tau_neg": 1.2},
        ),
        ({"ratio": "sequence"}, {f"{ACTOR}.policy_loss.loss_mode": "gspo"}),
        (
            {"loss_aggregation": "constant", "max_response_length": 9},
            {
                f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum-norm",
                f"{ACTOR}.loss_scale_factor": 9,
            },
        ),
        ({"kl_coef": 0.1, "kl_estimator": "k2"}, {f"{ACTOR}.kl_loss_type": "mse"}),
        (
            {"overlong_buffer": 4, "overlong_penalty": 0.5, "max_response_length": 9},
            {
                "reward.reward_manager.name": "dapo",
                "+reward.reward_kwargs.overlong_buffer_cfg.enable": True,
                "+reward.reward_kwargs.overlong_buffer_cfg.len": 4,
                "+reward.reward_kwargs.overlong_buffer_cfg.penalty_factor": 0.5,
                "+reward.reward_kwargs.max_resp_len": 9,
            },
        ),
        (
            {"algorithm": "ppo", "kl_coef": 0.1, "kl_estimator": "k3"},
            {"algorithm.kl_penalty": "low_var_kl"},
        ),
    ],
    ids=str,
)
def test_a_setting_reaches_verl_under_its_key(
    settings: dict[str, Any], keys: dict[str, Any]
) -> None:
    made = make_overrides(on_verl(**settings), layout())
    assert {key: made.get(key) for key in keys} == keys


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "sapo", "backend": "verl", "device": "cpu"}, "loss_aggregation='token'"),
        ({"algorithm": "cispo", "ratio": "sequence"}, "ratio='sequence' makes GRPO into GSPO"),
        ({"algorithm": "sapo", "ratio": "sequence"}, "SAPO weights each token"),
        ({"algorithm": "rloo", "group_size": 1}, "group_size=1: RLOO .* at least 2"),
        ({"kl_estimator": "k1", "kl_coef": 0.1}, "gradient is zero on average"),
        ({"kl_estimator": "k4"}, "kl_estimator must be one of"),
        ({"tau_positive": 0}, "tau_positive must be above 0"),
        (
            {"algorithm": "dapo"},
            "algorithm must be 'ppo', 'grpo', 'rloo', 'cispo', 'sapo' or 'distill'",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VeRLConfig(**settings)


def test_every_field_that_verl_knows_nothing_of_is_the_trainers_own() -> None:
    """A new field is mapped, refused, or listed here on purpose."""
    unmapped = {
        field.name
        for field in fields(VeRLConfig)
        if not isinstance(field.metadata.get("verl"), VerlKeys | NotInVerl)
    }
    assert unmapped == {
        *("system_prompt", "on_long_prompt", "progress", "trackers", "vf_coef"),
        *("reward_timeout_seconds", "reward_concurrency", "max_flat_steps", "backend"),
        *("max_turns", "max_episode_tokens", "episode_timeout_seconds", "max_failed_share"),
        *("policy_models", "episode_retries", "episode_concurrency", "on_truncation"),
        "on_agent_error",
        *("environment_variables",),
        *("ray_address", "verl_overrides", "verl_python", "step_timeout_seconds"),
    }
