"""Convert a checkpoint of verl into a folder that other tools can load: weights or adapters.

Adapters are not merged into their base model here, because verl's merger cannot do it; `save()`
with `merge=True` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from orbiter.train.engine.models.folder import staged_folder
from orbiter.train.engine.thread import work
from orbiter.train.errors import TrainingError
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.plan import interpreter
from orbiter.train.verl.cluster.process import Child
from orbiter.train.verl.config import VeRLConfig

MERGER = "verl.model_merger"
"""The module of verl that merges a checkpoint's shards."""
MERGING_SECONDS = 3600.0
"""Time limit of the merge."""


async def merge_last(config: VeRLConfig, layout: Layout, target: Path) -> Path:
    """Merge the last checkpoint into `target`, completely or not at all.

    Raises:
        TrainingError: there is no checkpoint, or verl cannot merge it; the message shows why.
    """
    number = last_checkpoint(layout.checkpoints)
    if not number:
        raise TrainingError(
            f"the job left no checkpoint in {layout.checkpoints}; save_every= sets how often one "
            "is written before the end"
        )
    return await merge(config, layout, layout.checkpoints / f"global_step_{number}/actor", target)


async def merge(config: VeRLConfig, layout: Layout, source: Path, target: Path) -> Path:
    """Merge one checkpoint of the policy into `target`, completely or not at all.

    Raises:
        TrainingError: verl cannot merge it; the message shows why.
    """
    merged = layout.folder / "merged"
    # What an interrupted merge left would be mixed with the new files.
    shutil.rmtree(merged, ignore_errors=True)
    command = [interpreter(config), "-m", MERGER, "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(source), "--target_dir", str(merged)]
    async with Child(
        command, log=layout.folder / "merge.log", folder=layout.folder, environment=os.environ
    ) as merger:
        ended = await merger.wait(MERGING_SECONDS)
    if not ended or merger.code:
        raise TrainingError(f"verl cannot merge {source}:\n{merger.last_lines()}")
    await work(_move, merged, target, config.model)
    return target


def last_checkpoint(folder: Path) -> int:
    """Return the step of verl's last complete checkpoint, or 0 without one."""
    # verl writes this file after the checkpoint, so it never names an incomplete one.
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8"))
    return 0


def _move(merged: Path, target: Path, base: str) -> None:
    """Move the merged model to `target`; with LoRA, only the adapters and the tokenizer."""
    adapter = merged / "lora_adapter"
    with staged_folder(target) as staged:
        if adapter.is_dir():
            shutil.copytree(adapter, staged, dirs_exist_ok=True)
            _name_base(staged / "adapter_config.json", base)
            # The merger leaves the tokenizer beside the folder of the adapters.
            for file in [*merged.glob("tokenizer*"), *merged.glob("*.jinja")]:
                shutil.copy(file, staged)
        else:
            shutil.copytree(merged, staged, dirs_exist_ok=True)
    shutil.rmtree(merged)


def _name_base(path: Path, base: str) -> None:
    """Record the base model and task type in an adapter's config, which verl leaves empty."""
    described = json.loads(path.read_text(encoding="utf-8"))
    described |= {"base_model_name_or_path": base, "task_type": "CAUSAL_LM"}
    path.write_text(json.dumps(described, indent=2), encoding="utf-8")
