"""Our names for verl's: a config as the overrides of verl's `ppo_trainer` configuration.

Each key stands here once. Where verl's default differs from what the same config means on one
machine, the override says so. Left out: which overrides verl accepts (`inside/check.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from orbiter.train.verl.cluster.layout import Layout, steps_per_epoch
from orbiter.train.verl.config import VeRLAlgorithm, VeRLConfig

Overrides = dict[str, object]

NEVER = 1e9
"""A bound that nothing reaches: turns a clip off that verl cannot leave out."""
CPUS_A_WORKER = 4
"""Logical CPUs that a rehearsal's Ray counts for each worker; verl asks for three."""
FURTHER_CPUS = 12
"""Logical CPUs for the other actors: trainer, storage, rewards, agent loops."""

ACTOR, ROLL, REF = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref"))
MODEL = "actor_rollout_ref.model"


def make_overrides(config: VeRLConfig, layout: Layout) -> Overrides:
    """Return every override by its key; the user's own stand last and win."""
    parts = [
        _data(config, layout),
        _algorithm(config),
        _actor(config, layout),
        _rollout(config),
        _model(config, layout),
        _run(config, layout),
        _reward(layout),
    ]
    if config.algorithm is VeRLAlgorithm.PPO:
        parts.append(_critic(config, layout))
    if config.device == "cpu":
        parts.append(_cpu(config))
    if in_float32(config):
        parts.append(_float32(config))
    made: Overrides = {}
    for part in [*parts, config.verl_overrides]:
        made |= part
    return made


def in_float32(config: VeRLConfig) -> bool:
    """Whether the job computes in float32: as set, or by "auto" in a rehearsal on processors."""
    return config.dtype == "float32" or (config.dtype == "auto" and config.device == "cpu")


def as_arguments(overrides: Mapping[str, object]) -> list[str]:
    """Write overrides in Hydra's grammar, one argument each."""
    return [f"{key}={_value(value)}" for key, value in overrides.items()]


def _value(value: object) -> str:
    if isinstance(value, str | Path):
        text = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return f"'{text}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    return json.dumps(value)


def _data(config: VeRLConfig, layout: Layout) -> Overrides:
    return {
        "data.train_files": layout.train_file,
        "data.val_files": layout.held_out_file,
        "data.train_batch_size": config.batch_size,
        "data.max_prompt_length": layout.longest_prompt,
        "data.max_response_length": config.max_response_length,
        "data.seed": config.seed,
    }


def _algorithm(config: VeRLConfig) -> Overrides:
    ppo = config.algorithm is VeRLAlgorithm.PPO
    made: Overrides = {
        "algorithm.adv_estimator": "gae" if ppo else "grpo",
        "algorithm.gamma": config.gamma,
        "algorithm.lam": config.gae_lambda,
        "algorithm.norm_adv_by_std_in_grpo": config.scale_rewards,
        "algorithm.use_kl_in_reward": ppo and config.kl_coef > 0,
        f"{ACTOR}.use_kl_loss": not ppo and config.kl_coef > 0,
    }
    if config.kl_coef and ppo:
        made |= {
            "algorithm.kl_ctrl.type": "fixed",
            "algorithm.kl_ctrl.kl_coef": config.kl_coef,
            "algorithm.kl_penalty": "kl",
        }
    if config.kl_coef and not ppo:
        made |= {
            f"{ACTOR}.kl_loss_coef": config.kl_coef,
            f"{ACTOR}.kl_loss_type": "low_var_kl",
        }
    return made


def _actor(config: VeRLConfig, layout: Layout) -> Overrides:
    prompts_an_update = (config.minibatch_size // config.group_size) or config.batch_size
    aggregation = {"token": "token-mean", "sequence": "seq-mean-token-mean"}
    return {
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.ppo_mini_batch_size": prompts_an_update,
        f"{ACTOR}.ppo_epochs": config.ppo_epochs,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.ppo_max_token_len_per_gpu": _micro_batch(config, layout),
        f"{ACTOR}.clip_ratio": config.clip_range,
        f"{ACTOR}.clip_ratio_low": config.clip_range,
        f"{ACTOR}.clip_ratio_high": config.clip_range_high or config.clip_range,
        f"{ACTOR}.clip_ratio_c": NEVER,
        f"{ACTOR}.loss_agg_mode": aggregation[config.loss_aggregation],
        f"{ACTOR}.entropy_coeff": config.ent_coef,
        f"{ACTOR}.grad_clip": config.max_grad_norm,
        f"{ACTOR}.data_loader_seed": config.seed,
        f"{ACTOR}.shuffle": True,
        **_optimiser(f"{ACTOR}.optim", config),
    }


def _optimiser(prefix: str, config: VeRLConfig) -> Overrides:
    return {
        f"{prefix}.lr": config.learning_rate,
        f"{prefix}.weight_decay": config.weight_decay,
        f"{prefix}.lr_warmup_steps": config.warmup_steps or -1,
    }


def _micro_batch(config: VeRLConfig, layout: Layout) -> int:
    """Return the tokens of a forward pass: verl's must hold at least one whole sequence."""
    return max(config.micro_batch_tokens, layout.longest_prompt + config.max_response_length)


def _critic(config: VeRLConfig, layout: Layout) -> Overrides:
    return {
        "critic.strategy": "fsdp2",
        "critic.model.path": layout.model,
        "critic.cliprange_value": config.clip_range_value or NEVER,
        "critic.grad_clip": config.max_grad_norm,
        "critic.data_loader_seed": config.seed,
        "critic.ppo_max_token_len_per_gpu": _micro_batch(config, layout),
        **_optimiser("critic.optim", config),
    }


def _rollout(config: VeRLConfig) -> Overrides:
    return {
        f"{ROLL}.name": config.rollout_name,
        f"{ROLL}.n": config.group_size,
        f"{ROLL}.temperature": config.temperature,
        f"{ROLL}.tensor_model_parallel_size": config.tensor_parallel,
        f"{ROLL}.seed": config.seed,
    }


def _model(config: VeRLConfig, layout: Layout) -> Overrides:
    made: Overrides = {f"{MODEL}.path": layout.model}
    if config.lora_rank:
        alpha = config.lora_alpha if config.lora_alpha is not None else 2 * config.lora_rank
        made |= {
            f"{MODEL}.lora_rank": config.lora_rank,
            f"{MODEL}.lora_alpha": int(alpha),
            f"{MODEL}.target_modules": "all-linear",
            f"{ROLL}.load_format": "safetensors",
        }
    return made


def _run(config: VeRLConfig, layout: Layout) -> Overrides:
    total = config.epochs * steps_per_epoch(config, layout.prompts)
    return {
        "trainer.nnodes": config.nodes,
        "trainer.n_gpus_per_node": config.gpus_per_node,
        "trainer.total_epochs": config.epochs,
        "trainer.val_before_train": False,
        "trainer.test_freq": config.eval_every or -1,
        "trainer.save_freq": save_frequency(config) or total,
        "trainer.max_actor_ckpt_to_keep": config.keep_checkpoints,
        "trainer.max_critic_ckpt_to_keep": config.keep_checkpoints,
        "trainer.default_local_dir": layout.checkpoints,
        "trainer.resume_mode": "auto" if config.resume else "disable",
        "trainer.logger": ["console", "file"],
        "trainer.project_name": "orbiter-train",
        "trainer.experiment_name": layout.folder.parent.name,
        "trainer.rollout_data_dir": layout.samples,
        "trainer.v1.sampler.custom_sampler.path": "pkg://orbiter.train.verl.cluster.inside.sampler",
        "trainer.v1.sampler.custom_sampler.name": "NamedRewards",
    }


def save_frequency(config: VeRLConfig) -> int:
    """Return `save_every`, which counts updates, in steps; 0 saves behind the last step only."""
    size = config.minibatch_size or config.batch_size * config.group_size
    updates = config.ppo_epochs * (config.batch_size * config.group_size // size)
    return math.ceil(config.save_every / updates)


def _reward(layout: Layout) -> Overrides:
    return {
        "reward.custom_reward_function.path": layout.reward_file,
        "reward.custom_reward_function.name": "compute_score",
    }


def _float32(config: VeRLConfig) -> Overrides:
    """Compute in float32: verl's own default is bfloat16 with float32 weights."""
    places = [f"{ACTOR}.fsdp_config", f"{REF}.fsdp_config"]
    if config.algorithm is VeRLAlgorithm.PPO:
        places.append("critic.fsdp")
    mixed = {
        f"+{place}.mixed_precision.{kind}_dtype": "fp32"
        for place in places
        for kind in ("param", "reduce")
    }
    return {**mixed, f"{ROLL}.dtype": "float32"}


def _cpu(config: VeRLConfig) -> Overrides:
    """What a rehearsal without a GPU needs: no flash attention, few processes, a local Ray."""
    models = [MODEL] + (["critic.model"] if config.algorithm is VeRLAlgorithm.PPO else [])
    made: Overrides = {
        "trainer.device": "cpu",
        f"{ROLL}.agent.num_workers": 1,
        "reward.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "data.dataloader_num_workers": 0,
        f"{ACTOR}.fsdp_config.use_torch_compile": False,
        f"{REF}.fsdp_config.use_torch_compile": False,
    }
    for model in models:
        made[f"{model}.use_remove_padding"] = False
        made[f"+{model}.override_config.attn_implementation"] = "sdpa"
    if config.lora_rank:
        made[f"{MODEL}.lora.merge"] = True
    if config.ray_address is None:
        workers = config.nodes * config.gpus_per_node
        made |= {
            "ray_kwargs.ray_init.num_cpus": CPUS_A_WORKER * workers + FURTHER_CPUS,
            "+ray_kwargs.ray_init.num_gpus": workers,
            "+ray_kwargs.ray_init.include_dashboard": False,
            "+ray_kwargs.ray_init._node_ip_address": "127.0.0.1",
        }
    return made
