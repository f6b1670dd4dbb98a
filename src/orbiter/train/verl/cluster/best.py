"""Keep the weights of a run's best validation on verl, before verl removes their checkpoint.

verl saves a step before it validates it, keeps the newest checkpoints, and knows no best one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import NamedTuple

from orbiter.train.storage import write_file
from orbiter.train.verl.cluster.layout import Layout

NOT_NEEDED = shutil.ignore_patterns("optim_*", "extra_state_*")
"""Files of a checkpoint that only a resumed run reads."""
SCORE = "best.json"


class Best(NamedTuple):
    """The best validation so far."""

    step: int
    reward: float


def best_of(layout: Layout) -> Best | None:
    """Return the best validation whose weights are kept, also by an earlier start of the run."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        kept = json.loads((layout.best / SCORE).read_text(encoding="utf-8"))
        return Best(int(kept["step"]), float(kept["reward"]))
    return None


def keep_best(layout: Layout, step: int, reward: float) -> bool:
    """Keep the weights of a validated step, if it is the best so far and has a checkpoint."""
    best, saved = best_of(layout), layout.checkpoints / f"global_step_{step}" / "actor"
    if (best is not None and reward <= best.reward) or not saved.is_dir():
        return False
    staged = layout.best.with_name(f".{layout.best.name}")
    shutil.rmtree(staged, ignore_errors=True)
    # Links, because verl writes each checkpoint into new files and never changes one.
    shutil.copytree(saved, staged / "actor", copy_function=_link, ignore=NOT_NEEDED)
    write_file(staged / SCORE, json.dumps({"step": step, "reward": reward}).encode())
    shutil.rmtree(layout.best, ignore_errors=True)
    staged.rename(layout.best)
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
