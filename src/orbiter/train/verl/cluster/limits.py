"""What a config may not ask of verl: settings that mean nothing there are refused when it is made.

Left out: what only verl itself can say about a plan (`inside/check.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orbiter.train.errors import ConfigError

if TYPE_CHECKING:
    from orbiter.train.verl.config import VeRLConfig

OURS: Mapping[str, str] = {
    "data.train_files": "the data set given to train()",
    "data.val_files": "eval_dataset=",
    "data.train_batch_size": "batch_size=",
    "reward.custom_reward_function.path": "rewards=",
    "reward.custom_reward_function.name": "rewards=",
    "trainer.default_local_dir": "output_dir=",
    "trainer.total_epochs": "epochs=",
    "trainer.nnodes": "nodes=",
    "trainer.n_gpus_per_node": "gpus_per_node=",
    "trainer.device": "device=",
    "trainer.resume_mode": "resume=",
    "trainer.rollout_data_dir": "output_dir=",
    "actor_rollout_ref.model.path": "model=",
    "actor_rollout_ref.rollout.n": "group_size=",
    "actor_rollout_ref.rollout.name": "rollout=",
}
"""Keys of verl's that the trainer itself reads back: each is set by a name of ours."""


def check_for_verl(config: VeRLConfig) -> None:
    """Refuse what verl has no counterpart for, and a place that cannot be.

    Raises:
        ConfigError: names the setting, its value and the way out.
    """
    _check_place(config)
    _check_counterparts(config)
    _check_overrides(config.verl_overrides)
    if config.minibatch_size % config.group_size:
        raise ConfigError(
            f"minibatch_size={config.minibatch_size} must be a multiple of group_size="
            f"{config.group_size} for backend='verl', whose updates take whole groups"
        )


def _check_place(config: VeRLConfig) -> None:
    if config.device not in {"auto", "cuda", "cpu"}:
        raise ConfigError(
            f"device must be 'auto' or 'cuda' (GPUs), or 'cpu' (a rehearsal) for backend='verl', "
            f"got {config.device!r}"
        )
    if (config.rollout_name == "transformers") != (config.device == "cpu"):
        raise ConfigError(
            f"rollout={config.rollout!r} does not go with device={config.device!r}: transformers "
            "samples in a rehearsal on 'cpu', and nothing else does"
        )
    if config.device == "cpu" and config.tensor_parallel > 1:
        raise ConfigError(
            f"tensor_parallel={config.tensor_parallel}: a rehearsal's model is in one piece"
        )
    if config.ray_address is not None:
        _check_address(config.ray_address, config.output_dir)
    elif config.nodes > 1 and config.device != "cpu":
        raise ConfigError(
            f"nodes={config.nodes} needs ray_address=, the job server of a Ray cluster; a Ray "
            "started here has this machine only"
        )


def _check_address(address: object, output_dir: str | os.PathLike[str] | None) -> None:
    if not isinstance(address, str) or not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"ray_address must be the URL of Ray's job server, such as 'http://head:8265', "
            f"got {address!r}"
        )
    if output_dir is None:
        raise ConfigError(
            "ray_address needs output_dir=, a folder that every node sees under the same path"
        )


def _check_counterparts(config: VeRLConfig) -> None:
    """Refuse what verl cannot do, where it was asked for."""
    lacking = {
        "target_kl": (config.target_kl is not None, "verl takes all updates of a step"),
        "max_seconds": (config.max_seconds is not None, "verl knows no time; lower epochs"),
        "lr_schedule": (config.lr_schedule != "constant", "verl's are constant and cosine"),
        "on_reward_error": (
            config.on_reward_error == "skip",
            "verl pads a group that lacks a sample; use 'raise' or a number",
        ),
    }
    for name, (asked, why) in lacking.items():
        if asked:
            raise ConfigError(
                f"{name}={getattr(config, name)!r} has no counterpart in verl ({why})"
            )


def _check_overrides(overrides: object) -> None:
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"verl_overrides must map verl's keys to values, got {overrides!r}")
    for key, value in overrides.items():
        if not isinstance(key, str) or not key or "=" in key:
            raise ConfigError(f"a key of verl_overrides must be a dotted name, got {key!r}")
        name = key.lstrip("+")
        if name in OURS:
            raise ConfigError(f"verl_overrides cannot set {key!r}: {OURS[name]} does")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"verl_overrides[{key!r}] cannot be written down: {error}") from error
