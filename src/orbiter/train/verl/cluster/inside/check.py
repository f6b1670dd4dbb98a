"""Check a plan with verl: compose and validate its configuration, and add checks verl lacks.

    python -m orbiter.train.verl.cluster.inside.check < request.json

The answer is JSON on the last line of standard output. No job is started and no model is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from orbiter.train.errors import did_you_mean


@dataclass(slots=True)
class CheckAnswer:
    """The result of a check."""

    version: str | None = None
    """Version of verl; None if it is not installed."""
    devices: int = 0
    """GPUs that this interpreter sees."""
    refusals: list[str] = field(default_factory=list[str])
    """Problems of the plan; empty if there is no problem."""
    composed: dict[str, Any] = field(default_factory=dict[str, Any])
    """verl's configuration with the overrides applied, by dotted key."""
    agent: list[str] = field(default_factory=list[str])
    """Why the agent cannot run here."""
    notes: list[str] = field(default_factory=list[str])
    """What differs here from the process that asks."""
    missing: dict[str, str] = field(default_factory=dict[str, str])
    """Requested modules that cannot be imported here, with the reason."""


def check(request: Mapping[str, Any]) -> CheckAnswer:
    """Compose and check the overrides of a request, if this interpreter has a tested verl."""
    answer = CheckAnswer()
    try:
        answer.version = version("verl")
    except PackageNotFoundError:
        return answer
    if answer.version not in request["tested"]:
        return answer
    # After the version was checked: an interpreter without verl may not have torch either.
    import torch

    answer.devices = torch.cuda.device_count()
    answer.missing = dict(_missing(request["modules"]))
    _check_agent(answer, request.get("agent_modules", []), request.get("packages", {}))
    # verl's defaults; the one key without a default must be given for them to compose.
    known = _leaves(_config(["actor_rollout_ref.rollout.name=vllm"]), inner=True)
    answer.refusals = list(_unknown_keys(request["overrides"], known))
    # With an unknown key Hydra would fail first, with a message that names only that key.
    if not answer.refusals:
        _compose(answer, [*request["overrides"]])
    if answer.composed:
        answer.refusals += _no_numbers(answer.composed, known)
    return answer


def _check_agent(
    answer: CheckAnswer, modules: list[str], packages: Mapping[str, str | None]
) -> None:
    """Look for what an agent imports, and compare the versions with those of the asking process."""
    # Found without importing: a package may be slow to import, or change the process.
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        answer.agent = [
            f"the agent imports {', '.join(absent)}, which is not installed for {sys.executable}; "
            "install it there and on every node"
        ]
        return
    answer.agent = [
        f"the agent's module {name} cannot be imported by {sys.executable} ({why})"
        for name, why in _missing(modules)
    ]
    distributions = packages_distributions()
    for name, wanted in packages.items():
        versions = {version(each) for each in distributions.get(name, [])}
        if wanted is not None and len(versions) == 1 and versions != {wanted}:
            answer.notes.append(
                f"the agent's {name} is {versions.pop()} in verl's interpreter and {wanted} here"
            )


def _missing(modules: list[str]) -> Iterator[tuple[str, str]]:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module that fails at import counts as missing
            yield name, f"{type(error).__name__}: {error}"


def _config(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def _unknown_keys(overrides: list[str], known: Mapping[str, Any]) -> Iterator[str]:
    """Yield an error for every key that verl does not know, unless it is added with a "+"."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("~")
        # A "+" says that the key is new, as Hydra requires for it.
        if not key.startswith("+") and key not in known:
            yield (
                f"verl has no key {key!r}{did_you_mean(key, known)}"
                f" (a new key is added as '+{key}')"
            )


def _no_numbers(composed: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """Yield an error for every text value where verl's default is a number."""
    for key, value in composed.items():
        # Hydra takes any text; verl would fail on it hours later.
        if isinstance(value, str) and isinstance(known.get(key), int | float):
            yield f"{key} must be a number, got {value!r}"


def _leaves(config: Any, prefix: str = "", *, inner: bool = False) -> dict[str, Any]:
    """Return the values by dotted key; with `inner`, the sections too."""
    from omegaconf import DictConfig, OmegaConf

    leaves: dict[str, Any] = {}
    for name in config:
        value = OmegaConf.select(config, name, default=None, throw_on_missing=False)
        key = f"{prefix}{name}"
        if isinstance(value, DictConfig) and len(value):
            leaves |= {key: None} if inner else {}
            leaves |= _leaves(value, f"{key}.", inner=inner)
        else:
            leaves[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return leaves


def _compose(answer: CheckAnswer, overrides: list[str]) -> None:
    """Compose the configuration as verl does, let verl validate it, and add further checks."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        config = _config(overrides)
        OmegaConf.resolve(config)
        # Standard output is for the answer alone.
        with contextlib.redirect_stdout(sys.stderr):
            validate_config(
                config,
                use_reference_policy=need_reference_policy(config),
                use_critic=need_critic(config),
            )
    except Exception as error:
        # Hydra wraps the cause, which is what a user can act on.
        lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        answer.refusals = [f"verl refuses the configuration: {' '.join(lines[:3])}"]
        return
    answer.composed = _leaves(config)
    answer.refusals = [*_unknown_names(config), *_uneven_sizes(config, critic=need_critic(config))]


def _unknown_names(config: Any) -> Iterator[str]:
    """Yield an error for every unknown name that verl would look up only at run time."""
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    importlib.import_module("verl.workers.engine")  # registers verl's engines
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    engines = EngineRegistry._engines["language_model"]
    kinds = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "full")
    choices = {
        "algorithm.adv_estimator": (config.algorithm.adv_estimator, ADV_ESTIMATOR_REGISTRY),
        "actor_rollout_ref.actor.strategy": (actor.strategy, engines),
        "actor_rollout_ref.actor.policy_loss.loss_mode": (
            actor.policy_loss.loss_mode,
            POLICY_LOSS_REGISTRY,
        ),
        "actor_rollout_ref.actor.kl_loss_type": (actor.kl_loss_type.removesuffix("+"), kinds),
        "algorithm.kl_penalty": (config.algorithm.kl_penalty.removesuffix("+"), kinds),
        "actor_rollout_ref.rollout.name": (rollout.name, RolloutReplicaRegistry._registry),
        "reward.reward_manager.name": (config.reward.reward_manager.name, REWARD_MANAGER),
        "critic.strategy": (config.critic.strategy, engines),
    }
    for key, (name, known) in choices.items():
        if name not in known:
            names = sorted(str(getattr(each, "value", each)) for each in known)
            hint = did_you_mean(str(name), names)
            yield f"{key}={name} is unknown to verl{hint} (known: {', '.join(names)})"


def _uneven_sizes(config: Any, *, critic: bool) -> Iterator[str]:
    """Yield an error for every size that does not divide evenly."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    samples = config.data.train_batch_size * rollout.n
    updated = actor.ppo_mini_batch_size * rollout.n
    sizes = [("train_batch_size x rollout.n", samples, "GPUs", gpus)]
    sizes += [("ppo_mini_batch_size x rollout.n", updated, "GPUs", gpus)]
    sizes += [("train_batch_size", config.data.train_batch_size, "actor.ppo_mini_batch_size",
               actor.ppo_mini_batch_size)]  # fmt: skip
    sizes += [("GPUs", gpus, "rollout.tensor_model_parallel_size",
               rollout.tensor_model_parallel_size)]  # fmt: skip
    micro = [("actor.ppo_micro_batch_size_per_gpu", actor.use_dynamic_bsz,
              actor.ppo_micro_batch_size_per_gpu, updated)]  # fmt: skip
    micro += [("rollout.log_prob_micro_batch_size_per_gpu", rollout.log_prob_use_dynamic_bsz,
               rollout.log_prob_micro_batch_size_per_gpu, samples)]  # fmt: skip
    if critic:
        micro += [("critic.ppo_micro_batch_size_per_gpu", config.critic.use_dynamic_bsz,
                   config.critic.ppo_micro_batch_size_per_gpu, updated)]  # fmt: skip
    for name, dynamic, size, whole in micro:
        if not dynamic and size:
            sizes += [(f"the samples of one GPU ({whole} / {gpus})", whole // gpus, name, size)]
    for name, whole, part_name, part in sizes:
        if not part or whole % part:
            yield f"{part_name}={part} does not divide {name}={whole}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(check(json.load(sys.stdin))), default=str) + "\n")
