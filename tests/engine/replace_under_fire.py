"""Replace a saved model again and again, each time killed at another file operation.

python replace_under_fire.py FOLDER swap|rename
    prints one line of JSON: how many points were struck, and what went wrong

"rename" is a system that cannot exchange two names: there the folder gets its name back when it
is next looked at.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

from orbiter.train.engine.models import folder as folders
from orbiter.train.engine.models.folder import staged_folder, sweep_partials, verify_folder
from orbiter.train.engine.models.load import saved_kind
from orbiter.train.errors import StorageError
from tests.engine.save_under_fire import kill, strike_at


def save(target: Path, content: str) -> None:
    """Write what stands for a model."""
    with staged_folder(target) as staged:
        (staged / "config.json").write_text("{}")
        (staged / "model.safetensors").write_text(content * 100)


def wrong_after(target: Path, *, can_swap: bool) -> str | None:
    """Say what the next user of the model would find wrong, or None."""
    if can_swap and not target.exists():
        return "there is no model at the path"
    try:
        saved_kind(target)  # as `load_model` begins
        verify_folder(target)
    except StorageError as error:
        return str(error)
    if (target / "model.safetensors").read_text() not in ("old" * 100, "new" * 100):
        return "the model is a mixture"
    sweep_partials(target.parent)
    save(target, "new")
    verify_folder(target)
    if left := [p.name for p in target.parent.iterdir() if p != target]:
        return f"left behind: {left}"
    return None


def main() -> None:
    """Strike at every operation there is, until a save gets through untouched."""
    base, can_swap = Path(sys.argv[1]), sys.argv[2] == "swap"
    if not can_swap:
        vars(folders)["_swap"] = lambda *_: False
    wrong = []
    for point in itertools.count():
        target = base / str(point) / "model"
        target.parent.mkdir()
        save(target, "old")
        pid = os.fork()
        if pid == 0:
            strike_at(point, target.parent, kill)
            save(target, "new")
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if trouble := wrong_after(target, can_swap=can_swap):
            wrong.append(f"point {point}: {trouble}")
        shutil.rmtree(target.parent)
        if not os.WIFSIGNALED(status):
            break
    sys.stdout.write(json.dumps({"points": point, "wrong": wrong}) + "\n")


if __name__ == "__main__":
    main()
