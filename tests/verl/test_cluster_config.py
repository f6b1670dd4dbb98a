from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.verl import VeRLAlgorithm, VeRLConfig
from orbiter.train.verl.cluster.follow import step_row
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.overrides import as_arguments, make_overrides


def config(**settings: object) -> VeRLConfig:
    chosen: dict[str, Any] = {"backend": "verl", "device": "cpu", **settings}
    return VeRLConfig(**chosen)


def layout(prompts: int = 40) -> Layout:
    return Layout(
        folder=Path("/run/verl"),
        model="/m",
        prompts=prompts,
        longest_prompt=30,
        validates=False,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "mps"}, "device must be 'auto' or 'cuda'"),
        ({"device": "cuda", "nodes": 2}, "nodes=2 needs ray_address="),
        ({"rollout": "vllm"}, "rollout='vllm' does not go with device='cpu'"),
        ({"device": "cuda", "rollout": "transformers"}, "does not go with device='cuda'"),
        ({"rollout": "vlm"}, "rollout must be one of"),
        ({"tensor_parallel": 2}, "tensor_parallel=2: a rehearsal"),
        ({"ray_address": "head:8265", "output_dir": "o"}, "the URL of Ray's job server"),
        ({"ray_address": "http://head:8265"}, "ray_address needs output_dir="),
        ({"lora_rank": 4, "lora_alpha": 12.5}, "lora_alpha=12.5 must be a whole number"),
        ({"keep_special_tokens": True}, "keep_special_tokens=True has no counterpart"),
        ({"target_kl": 0.1}, "target_kl=0.1 has no counterpart in verl"),
        ({"max_seconds": 9}, "max_seconds=9 has no counterpart"),
        ({"lr_schedule": "linear"}, "lr_schedule='linear' has no counterpart"),
        ({"on_reward_error": "skip"}, "verl pads a group that lacks a sample"),
        ({"minibatch_size": 4}, "must be a multiple of group_size=8"),
        ({"verl_overrides": {"trainer.nnodes": 2}}, "'trainer.nnodes': nodes= does"),
        (
            {"verl_overrides": {"trainer.v1.trainer_mode": "separate_async"}},
            "'trainer.v1.trainer_mode': max_staleness= does",
        ),
        ({"max_staleness": -1}, "max_staleness must be at least 0"),
        ({"max_importance": 0.5}, "max_importance must be at least 1"),
        ({"backend": "local", "max_staleness": 1}, "max_staleness=1 needs backend='verl'"),
        ({"verl_overrides": {"+data.seed=": 1}}, "must be a dotted name"),
        ({"verl_overrides": {"a.b": object()}}, r"verl_overrides\['a.b'\] cannot be written as"),
        ({"verl_overrides": ["a"]}, "must map verl's keys"),
        ({"step_timeout_seconds": 0}, "step_timeout_seconds must be above 0"),
        ({"gpus_per_node": 0}, "gpus_per_node must be at least 1"),
        ({"backend": "ray"}, "backend must be one of 'local', 'verl'"),
    ],
)
def test_what_verl_cannot_mean_is_refused_when_the_config_is_made(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**settings)


def test_a_setting_of_the_local_backend_alone_is_fine_there() -> None:
    assert VeRLConfig(target_kl=0.1, lr_schedule="linear", max_seconds=9).backend == "local"


def test_the_same_settings_mean_the_same_to_verl() -> None:
    made = make_overrides(
        config(
            algorithm="ppo",
            batch_size=6,
            group_size=4,
            minibatch_size=8,
            ppo_epochs=2,
            save_every=10,
            output_dir="o",
            clip_range_high=0.28,
            clip_range_value=None,
            loss_aggregation="sequence",
            kl_coef=0.1,
        ),
        layout(),
    )
    assert made["actor_rollout_ref.actor.ppo_mini_batch_size"] == 2, "in prompts"
    assert made["trainer.save_freq"] == 2, "ten updates are not quite two steps of six"
    assert made["actor_rollout_ref.actor.clip_ratio_high"] == 0.28
    assert made["critic.cliprange_value"] == 1e9
    assert made["actor_rollout_ref.actor.loss_agg_mode"] == "seq-mean-token-mean"
    assert made["algorithm.use_kl_in_reward"] is True
    assert made["actor_rollout_ref.actor.use_kl_loss"] is False


def test_a_grpo_run_has_no_critic_and_keeps_its_kl_in_the_loss() -> None:
    made = make_overrides(config(kl_coef=0.1), layout())
    assert made["actor_rollout_ref.actor.kl_loss_type"] == "low_var_kl"
    assert not [key for key in made if key.startswith("critic.")]


def test_a_forward_pass_holds_at_least_one_sequence() -> None:
    small = make_overrides(config(micro_batch_tokens=10, max_response_length=50), layout())
    assert small["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] == 80


def test_sampling_ahead_is_off_by_default_and_verls_colocated_mode_otherwise() -> None:
    assert not [key for key in make_overrides(config(), layout()) if "async" in key]
    made = make_overrides(config(max_staleness=2, max_importance=3.0), layout())
    assert made["trainer.v1.trainer_mode"] == "colocate_async"
    assert made["trainer.v1.colocate_async.num_warmup_batches"] == 2
    assert made["trainer.v1.sampler.max_off_policy_threshold"] == 3, "in versions, the own one too"
    assert made["trainer.v1.sampler.custom_sampler.name"] == "NamedRewardsAsync"
    assert made["algorithm.rollout_correction.rollout_is"] == "token"
    assert made["algorithm.rollout_correction.rollout_is_threshold"] == 3.0


def test_an_agents_importance_is_bounded_by_the_clip_since_verls_weights_are_taken() -> None:
    of_agent = replace(layout(), agent=True)
    made = make_overrides(config(max_staleness=1), of_agent)
    assert made["trainer.v1.sampler.custom_sampler.name"] == "EpisodeBatchesAsync"
    assert made["algorithm.rollout_correction.rollout_is"] is None
    assert made["algorithm.rollout_correction.bypass_mode"] is True


def test_without_checkpoints_wished_the_last_step_leaves_one() -> None:
    made = make_overrides(config(epochs=3), layout(prompts=45))
    assert made["trainer.save_freq"] == 15


def test_on_a_cluster_nothing_is_said_of_a_ray_of_our_own() -> None:
    away = config(ray_address="http://head:8265", output_dir="o")
    assert not [key for key in make_overrides(away, layout()) if "ray_init" in key]


def test_the_users_keys_win() -> None:
    made = make_overrides(config(verl_overrides={"data.seed": 7}), layout())
    assert made["data.seed"] == 7


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "true"),
        (None, "null"),
        (1e-5, "1e-05"),
        (3, "3"),
        ("it's a \\", r"'it\'s a \\'"),
        (Path("/a b/c,d=e"), "'/a b/c,d=e'"),
        (["a", 1], "['a',1]"),
        ({"a": [True]}, "{a:[true]}"),
    ],
)
def test_values_are_written_in_hydras_grammar(value: object, written: str) -> None:
    assert as_arguments({"k": value}) == [f"k={written}"]


def test_verls_metrics_come_under_our_names_and_its_own() -> None:
    row = step_row(
        {
            "critic/score/mean": 0.5,
            "actor/pg_clipfrac": 0.1,
            "actor/kl_loss": 0.02,
            "reward/vowels": 0.4,
            "val-core/orbiter-train/reward/mean@1": 0.7,
            "val-core/openai/gsm8k/reward/mean@1": 0.5,
            "val-core/openai/gsm8k/reward/best@2/mean": 9.0,
            "val-aux/orbiter-train/reward/vowels/mean@1": 0.6,
            "timing_s/step": 2.0,
            "perf/total_num_tokens": 100,
            "training/epoch": 0,
            "reward_std": 0.25,
            "a text": "is left out",
        },
        VeRLAlgorithm.GRPO,
    )
    assert row.metrics["reward"] == 0.5
    assert row.metrics["clip_fraction"] == 0.1
    assert row.metrics["kl"] == 0.02
    assert row.metrics["reward/vowels"] == 0.4
    assert row.metrics["eval/reward"] == pytest.approx(0.6), "the mean over two sources"
    assert row.metrics["eval/reward/vowels"] == 0.6
    assert row.metrics["verl/training/epoch"] == 0
    assert row.metrics["reward_std"] == 0.25
    assert "verl/critic/score/mean" not in row.metrics, "one name for one thing"
    assert row.clock["seconds"] == 2
    assert row.clock["tokens_per_second"] == 50
    assert not {"seconds", "verl/timing_s/step"} & row.metrics.keys()


def test_dtype_auto_is_float32_in_a_rehearsal_and_verls_bfloat16_on_gpus() -> None:
    rehearsed = make_overrides(config(dtype="auto"), layout())
    assert rehearsed["actor_rollout_ref.rollout.dtype"] == "float32"
    on_gpus = make_overrides(config(dtype="auto", device="cuda"), layout())
    assert not [key for key in on_gpus if "dtype" in key]
