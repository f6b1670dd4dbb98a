"""Patches for parts of verl 0.9.1 without an extension point, each with the reason for it.

Patches are applied by `plugin.py`, only in verl's own processes and only to a tested verl.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from verl.utils import distributed, fsdp_utils
from verl.utils import model as model_utils


class Patch(NamedTuple):
    """A change to verl 0.9.1 that its configuration does not allow."""

    where: str
    why: str
    apply: Callable[[], None]


def _missing_names_of_torch_cpu() -> None:
    zero = {"memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"}
    nothing = {"empty_cache", "reset_peak_memory_stats", "reset_accumulated_memory_stats"}
    stand_ins: dict[str, Callable[..., Any]] = {
        **dict.fromkeys(zero, lambda *_, **__: 0),
        **dict.fromkeys(nothing, lambda *_, **__: None),
        "mem_get_info": lambda *_, **__: (0, 0),
        "get_device_name": lambda *_, **__: "CPU",
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }
    for name, stand_in in stand_ins.items():
        # Names that a newer torch provides are left alone.
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, stand_in)


def _process_group() -> None:
    distributed.initialize_global_process_group_ray = functools.partial(
        distributed.initialize_global_process_group_ray, backend="gloo"
    )


def _critic_attention() -> None:
    def load(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        del trust_remote_code  # this package never runs code that comes with a model on verl
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation=model_config._attn_implementation,
            trust_remote_code=False,
        )

    model_utils.load_valuehead_model = load


def _pinned_memory() -> None:
    class Unpinned(fsdp_utils.CPUOffloadPolicy):  # type: ignore[misc] # verl is untyped here
        def __init__(self, pin_memory: bool = False) -> None:  # noqa: ARG002 - verl asks for pinned memory
            super().__init__(pin_memory=False)

    fsdp_utils.CPUOffloadPolicy = Unpinned


PATCHES = (
    Patch(
        "torch.cpu",
        "verl asks the device module for memory figures and its random state; torch.cpu has none",
        _missing_names_of_torch_cpu,
    ),
    Patch(
        "verl.utils.distributed.initialize_global_process_group_ray",
        "it requests 'cpu:gloo,cpu:gloo' from torch, which refuses the duplicate device",
        _process_group,
    ),
    Patch(
        "verl.utils.model.load_valuehead_model",
        "it requires flash attention for a critic, even if the configuration says otherwise",
        _critic_attention,
    ),
    Patch(
        "verl.utils.fsdp_utils.CPUOffloadPolicy",
        "it pins memory for the reference model, which needs an accelerator",
        _pinned_memory,
    ),
)
"""All patches that a run on CPU needs with verl 0.9.1."""


def apply_patches() -> None:
    """Apply all patches to this process."""
    for patch in PATCHES:
        patch.apply()
