"""A trainer on the real verl without a GPU, and what is left of a run in the system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer

PROMPTS = ["Say something.", "Sing."] * 16


def rehearsal(folder: Path, rewards: list[RewardSpec], **settings: object) -> VeRLTrainer:
    """A trainer whose run takes place on the real verl, on this machine's processor."""
    small: dict[str, Any] = {
        "backend": "verl",
        "device": "cpu",
        "model": "tiny",
        "batch_size": 4,
        "group_size": 4,
        "learning_rate": 2e-3,
        "max_response_length": 16,
        "output_dir": folder,
        "step_timeout_seconds": 2000,
    }
    names = ("eval_dataset", "agent", "environment")
    given: dict[str, Any] = {name: settings.pop(name, None) for name in names}
    config = VeRLConfig(**(small | settings))
    return VeRLTrainer(config, rewards, **given)


def processes_with(word: str) -> list[int]:
    """The processes whose command line or environment has this word in it, but this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if b"Z" in (entry / "stat").read_bytes().rpartition(b")")[2].split()[:1]:
                continue
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if word.encode() in said:
            found.append(int(entry.name))
    return found
