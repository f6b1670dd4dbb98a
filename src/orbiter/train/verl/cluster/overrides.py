"""Translate a config into overrides of verl's `ppo_trainer` configuration.

A field that maps to verl one to one declares its keys in its own declaration (`VerlKeys`), and the
algorithm adds its keys (`algorithms/`). This file computes the keys that depend on several fields,
on the data or on the machine. It also overrides verl's defaults where they differ from the
behaviour of the same config on one machine. `inside/check.py` checks that verl accepts the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from orbiter.train.trainer.config import VerlKeys
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.algorithms.base import ACTOR, V1
from orbiter.train.verl.cluster.layout import Layout, steps_per_epoch
from orbiter.train.verl.config import OVERLONG, VeRLConfig

Overrides = dict[str, object]

NEVER = 1e9
"""A bound that is never reached, to disable a clip that verl always applies."""
CPUS_A_WORKER = 4
"""Logical CPUs per worker in a rehearsal's Ray; verl requests three."""
FURTHER_CPUS = 12
"""Logical CPUs for the other Ray actors: trainer, storage, rewards, agent loops."""

AGENT_LOOP = "orbiter_episode"
"""The name under which verl knows our agent loop."""
SAMPLER = f"{V1}.sampler.custom_sampler"
CORRECTION = "algorithm.rollout_correction"
ROLL, REF, MODEL = (f"actor_rollout_ref.{part}" for part in ("rollout", "ref", "model"))


def make_overrides(config: VeRLConfig, layout: Layout) -> Overrides:
    """Return all overrides by key; the user's own take precedence."""
    algorithm = ALGORITHMS[config.algorithm]
    parts = [
        _declared(config),
        algorithm.verl_overrides(config),
        _data(layout),
        _actor(config, layout),
        _rollout(config),
        _model(config, layout),
        _run(config, layout),
        _reward(layout),
        overlong_overrides(config),
        _staleness(config),
    ]
    if algorithm.value_head:
        parts.append(_critic(config, layout))
    if config.device == "cpu":
        parts.append(_cpu(config))
    if in_float32(config):
        parts.append(_float32(config))
    made: Overrides = {}
    for part in parts:
        # Later parts win: those for a rehearsal or for float32 replace general ones.
        made |= part
    if layout.agent:
        made = _with_episodes(config, layout, made)
    # Last, so that a user can set any key of verl against this package's choice.
    return made | dict(config.verl_overrides)


def _with_episodes(config: VeRLConfig, layout: Layout, made: Overrides) -> Overrides:
    """Return the overrides with those of an agent's episodes.

    `inside/batches.py` gives the tokens their weights, so verl takes the mean over tokens; and it
    makes RLOO's advantages from GRPO's, since verl's own RLOO would count rows as samples.
    """
    made = made | {
        f"{ROLL}.agent.default_agent_loop": AGENT_LOOP,
        f"{ROLL}.agent.agent_loop_config_path": layout.loop_file,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{SAMPLER}.path": "pkg://orbiter.train.verl.cluster.inside.episodes",
        f"{SAMPLER}.name": "EpisodeBatchesAsync" if config.max_staleness else "EpisodeBatches",
        f"+{V1}.sampler.sampler_kwargs.shipment": layout.agent_file,
    }
    if config.max_staleness:
        # verl's field for importance weights holds the weights of episodes, so the ratio of the
        # loss, which clip_range bounds, is that to the policy that sampled.
        made |= {f"{CORRECTION}.rollout_is": None, f"{CORRECTION}.bypass_mode": True}
    if config.algorithm == "rloo":
        # The mean over all siblings; `inside/batches.py` corrects it to the mean over the others.
        made["algorithm.adv_estimator"] = "grpo"
        made["algorithm.norm_adv_by_std_in_grpo"] = False
    # Our sampler writes the samples itself, and a constant divisor is part of its weights.
    unused = ("trainer.rollout_data_dir", f"{ACTOR}.loss_scale_factor")
    return {key: value for key, value in made.items() if key not in unused}


def in_float32(config: VeRLConfig) -> bool:
    """Whether the job computes in float32: as set, or through "auto" in a rehearsal on CPUs."""
    return config.dtype == "float32" or (config.dtype == "auto" and config.device == "cpu")


def _declared(config: VeRLConfig) -> Overrides:
    """Return the keys that map to one field each; the critic's keys only if there is a critic."""
    has_critic = ALGORITHMS[config.algorithm].value_head
    made: Overrides = {}
    for declared in fields(config):
        mapped, value = declared.metadata.get("verl"), getattr(config, declared.name)
        if not isinstance(mapped, VerlKeys) or not mapped.written:
            continue
        if mapped.values is not None:
            if value not in mapped.values:
                continue  # computed elsewhere
            value = mapped.values[value]
        elif mapped.off is not None and not value:
            value = mapped.off
        keys = [key for key in mapped.keys if has_critic or not key.startswith("critic.")]
        made |= dict.fromkeys(keys, value)
    return made


def as_arguments(overrides: Mapping[str, object]) -> list[str]:
    """Return the overrides as arguments in Hydra's grammar."""
    return [f"{key}={_value(value)}" for key, value in overrides.items()]


def _value(value: object) -> str:
    if isinstance(value, str | Path):
        # Hydra's own quoting; a shell is not involved.
        text = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return f"'{text}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    # null, true, false and whole numbers are spelt in Hydra as in JSON.
    return json.dumps(value)


def _data(layout: Layout) -> Overrides:
    return {
        "data.train_files": layout.train_file,
        "data.val_files": layout.held_out_file,
        "data.max_prompt_length": layout.longest_prompt,
    }


def _actor(config: VeRLConfig, layout: Layout) -> Overrides:
    # verl counts this in prompts, and this package in samples.
    prompts_an_update = (config.minibatch_size // config.group_size) or config.batch_size
    made: Overrides = {
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.ppo_mini_batch_size": prompts_an_update,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.ppo_max_token_len_per_gpu": _micro_batch(config, layout),
        f"{ACTOR}.clip_ratio_high": config.clip_range_high or config.clip_range,
        # verl's dual clip has no switch; this package has none.
        f"{ACTOR}.clip_ratio_c": NEVER,
        f"{ACTOR}.shuffle": True,
    }
    if config.loss_aggregation == "constant":
        made[f"{ACTOR}.loss_scale_factor"] = config.max_response_length
    return made


def _micro_batch(config: VeRLConfig, layout: Layout) -> int:
    """Return the tokens of one forward pass, which verl requires to hold a whole sequence."""
    return max(config.micro_batch_tokens, layout.longest_prompt + config.max_response_length)


def _critic(config: VeRLConfig, layout: Layout) -> Overrides:
    return {
        "critic.strategy": "fsdp2",
        "critic.model.path": layout.model,
        "critic.ppo_max_token_len_per_gpu": _micro_batch(config, layout),
    }


def _rollout(config: VeRLConfig) -> Overrides:
    return {f"{ROLL}.name": config.rollout_name}


def _model(config: VeRLConfig, layout: Layout) -> Overrides:
    made: Overrides = {f"{MODEL}.path": layout.model}
    if config.lora_rank:
        alpha = config.lora_alpha if config.lora_alpha is not None else 2 * config.lora_rank
        made |= {
            f"{MODEL}.lora_rank": config.lora_rank,
            f"{MODEL}.lora_alpha": int(alpha),
            # The layers that `engine/models/lora.py` adapts too.
            f"{MODEL}.target_modules": "all-linear",
            f"{ROLL}.load_format": "safetensors",
        }
    return made


def _run(config: VeRLConfig, layout: Layout) -> Overrides:
    total = config.epochs * steps_per_epoch(config, layout.prompts)
    return {
        "trainer.val_before_train": False,
        # verl must save once: its last checkpoint is where the trained model comes from.
        "trainer.save_freq": checkpoint_frequency(config, layout) or total,
        "trainer.default_local_dir": layout.checkpoints,
        "trainer.logger": ["console", "file"],
        "trainer.project_name": "orbiter-train",
        "trainer.experiment_name": layout.folder.parent.name,
        "trainer.rollout_data_dir": layout.samples,
        f"{SAMPLER}.path": "pkg://orbiter.train.verl.cluster.inside.sampler",
        f"{SAMPLER}.name": "NamedRewardsAsync" if config.max_staleness else "NamedRewards",
    }


def save_frequency(config: VeRLConfig) -> int:
    """Return `save_every`, which counts updates, in steps."""
    # Rounded up, because verl cannot save within a step.
    return math.ceil(config.save_every / config.updates_per_step)


def checkpoint_frequency(config: VeRLConfig, layout: Layout) -> int:
    """Return the steps between two checkpoints; 0 saves after the last step only.

    A validated step needs one too, so that the best model can be kept.
    """
    saves = save_frequency(config)
    if config.eval_every and layout.validates and config.output_dir is not None:
        return math.gcd(saves, config.eval_every)
    return saves


def _staleness(config: VeRLConfig) -> Overrides:
    """Return the keys of verl's asynchronous trainer that shares the GPUs with the sampling.

    It samples `max_staleness` steps ahead. During an update the sampling is paused, and open
    answers continue afterwards with the new weights. "wait" keeps every prompt, where verl's
    default "drop" throws late ones away.
    """
    if not config.max_staleness:
        return {}
    return {
        f"{V1}.trainer_mode": "colocate_async",
        f"{V1}.colocate_async.num_warmup_batches": config.max_staleness,
        f"{V1}.sampler.max_off_policy_threshold": config.max_staleness + 1,
        f"{V1}.sampler.max_off_policy_strategy": "wait",
        f"{CORRECTION}.rollout_is": "token",
        f"{CORRECTION}.rollout_is_threshold": config.max_importance,
    }


def _reward(layout: Layout) -> Overrides:
    return {
        "reward.custom_reward_function.path": layout.reward_file,
        "reward.custom_reward_function.name": "compute_score",
    }


def _float32(config: VeRLConfig) -> Overrides:
    """Return the keys for float32 arithmetic; verl's default is bfloat16 with float32 weights."""
    places = [f"{ACTOR}.fsdp_config", f"{REF}.fsdp_config"]
    if ALGORITHMS[config.algorithm].value_head:
        places.append("critic.fsdp")
    mixed = {
        f"+{index}.mixed_precision.{kind}_dtype": "fp32"
        for index in places
        for kind in ("param", "reduce")
    }
    return {**mixed, f"{ROLL}.dtype": "float32"}


def overlong_overrides(config: VeRLConfig) -> Overrides:
    """Return verl's reward manager with DAPO's penalty for long answers, if there is one."""
    if not config.overlong_buffer:
        return {}
    return {
        "reward.reward_manager.name": "dapo",
        f"+{OVERLONG}.enable": True,
        f"+{OVERLONG}.len": config.overlong_buffer,
        f"+{OVERLONG}.penalty_factor": config.overlong_penalty,
        f"+{OVERLONG}.log": False,
        "+reward.reward_kwargs.max_resp_len": config.max_response_length,
    }


def _cpu(config: VeRLConfig) -> Overrides:
    """Return the keys for a rehearsal without a GPU: no flash attention, few processes."""
    models = [MODEL] + (["critic.model"] if ALGORITHMS[config.algorithm].value_head else [])
    made: Overrides = {
        "trainer.device": "cpu",
        f"{ROLL}.agent.num_workers": config.nodes,
        "reward.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "data.dataloader_num_workers": 0,
        f"{ACTOR}.fsdp_config.use_torch_compile": False,
        f"{REF}.fsdp_config.use_torch_compile": False,
    }
    for model in models:
        # Removed padding needs flash attention, which needs a GPU.
        made[f"{model}.use_remove_padding"] = False
        made[f"+{model}.override_config.attn_implementation"] = "sdpa"
    if config.lora_rank:
        made[f"{MODEL}.lora.merge"] = True
    # A cluster of the user's own has been started with its own numbers.
    if config.ray_address is None:
        workers = config.nodes * config.gpus_per_node
        made |= {
            "ray_kwargs.ray_init.num_cpus": CPUS_A_WORKER * workers + FURTHER_CPUS,
            "+ray_kwargs.ray_init.num_gpus": workers,
            "+ray_kwargs.ray_init.include_dashboard": False,
            "+ray_kwargs.ray_init._node_ip_address": "127.0.0.1",
        }
    return made
