"""Everything that a job on verl reads: rows, rewards, the model where it exists in code only.

Left out: what the job writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from orbiter.train.formats.verl_rows import write_rows
from orbiter.train.storage import atomic_write
from orbiter.train.verl.cluster.data import ModelFiles, Prompts, write_model
from orbiter.train.verl.cluster.inside.reward import FAULTS, SHIPMENT
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.rewards import MODULE, Shipped
from orbiter.train.verl.config import VeRLConfig


class Inputs(NamedTuple):
    """What a job learns from and by."""

    model: ModelFiles
    prompts: Prompts
    rewards: Sequence[Shipped]
    plan: str
    """The plan in words, which is kept beside the files."""


def write_files(config: VeRLConfig, layout: Layout, inputs: Inputs) -> None:
    """Write them, and clear away what an earlier start of the run left for its watcher."""
    layout.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(layout.folder / FAULTS, ignore_errors=True)
    shutil.rmtree(layout.samples, ignore_errors=True)
    layout.metrics_file.unlink(missing_ok=True)
    prompts = inputs.prompts
    write_model(config.model, inputs.model)
    write_rows(prompts.items, layout.train_file, system=prompts.system)
    if layout.validates:
        write_rows(prompts.held_out, layout.held_out_file, system=prompts.system)
    files = {layout.reward_file.name: MODULE, SHIPMENT: _shipment(config, inputs.rewards)}
    files |= {str(each.file): each.source or "" for each in inputs.rewards if each.file}
    files["plan.txt"] = f"{inputs.plan}\n"
    for name, text in files.items():
        with atomic_write(layout.folder / name) as file:
            file.write(text.encode())


def _shipment(config: VeRLConfig, rewards: Sequence[Shipped]) -> str:
    """Return what the reward module needs to know."""
    kept = ("name", "weight", "module", "function", "file")
    said = {
        "rewards": [{name: getattr(each, name) for name in kept} for each in rewards],
        "on_error": config.on_reward_error,
        "timeout_seconds": config.reward_timeout_seconds,
        "concurrency": config.reward_concurrency,
    }
    return json.dumps(said, indent=2)
