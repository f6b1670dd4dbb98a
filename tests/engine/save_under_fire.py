"""Save a checkpoint again and again, each time struck at another file operation.

python save_under_fire.py FOLDER kill|full|torn
    prints one line of JSON: how many points were struck, and what went wrong

Each strike hits a process of its own: "kill" is SIGKILL before the k-th operation, "full" is a
disk without space at it, "torn" is SIGKILL when the k-th file of tensors is half written.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from orbiter.train.engine import checkpoint
from orbiter.train.engine.checkpoint import Checkpoints
from orbiter.train.errors import StorageError

OLD, NEW = 2, 3
STRUCK = 17
"""Exit code of a child that met the full disk and took it well."""


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    """Two groups, other numbers at each step."""
    weights = {"a": torch.full((64,), float(step)), "b": torch.arange(12) * step}
    return {"weights": weights, "optimiser": {"a.step": torch.tensor(step)}}


def save(folder: Path, step: int) -> None:
    """Save what belongs to a step."""
    Checkpoints(folder).save(step, tensors=tensors(step), state={"step": step, "x": 0.1 * step})


def strike_at(point: int, folder: Path, blow: Callable[[], None]) -> None:
    """Arm this process: the blow falls before its `point`-th operation on a file in `folder`."""
    count = itertools.count()
    sync = os.fsync

    def step() -> None:
        if next(count) == point:
            blow()

    def watch(event: str, args: tuple[object, ...]) -> None:
        operation = event.startswith(("os.", "shutil.")) or event == "open"
        if operation and any(str(folder) in str(arg) for arg in args):
            step()

    def watched_sync(handle: int) -> None:
        step()
        sync(handle)

    vars(os)["fsync"] = watched_sync
    sys.addaudithook(watch)


def kill() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    """Refuse as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tear_at(point: int) -> None:
    """Arm this process: it dies in the middle of its `point`-th file of tensors."""
    count = itertools.count()
    write = vars(checkpoint)["save_file"]

    def torn(named: dict[str, Tensor], path: Path) -> None:
        write(named, path)
        if next(count) == point:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    vars(checkpoint)["save_file"] = torn


def child(folder: Path, mode: str, point: int) -> int:
    """Save under fire, and return how this process should end."""
    if mode == "torn":
        tear_at(point)
    else:
        strike_at(point, folder, kill if mode == "kill" else no_space)
    try:
        save(folder, NEW)
    except StorageError as error:
        named = str(folder) in str(error) and "bytes are free" in str(error)
        return STRUCK if named else 1
    return 0


def wrong_after(folder: Path, mode: str) -> str | None:
    """Say what a run that starts again in `folder` would find wrong, or None."""
    if mode == "full" and list(folder.glob(".*")):
        return "an unfinished folder was left behind"
    found = Checkpoints(folder).latest()
    if found is None or found.step not in {OLD, NEW}:
        return f"nothing to resume from: {found and found.step}"
    want = tensors(found.step)
    if found.state != {"step": found.step, "x": 0.1 * found.step} or any(
        not torch.equal(t, want[g][n])
        for g, named in found.tensors.items()
        for n, t in named.items()
    ):
        return f"step {found.step} came back changed"
    save(folder, NEW)
    again = Checkpoints(folder).latest()
    if again is None or again.step != NEW or list(folder.glob(".*")):
        return "the run could not save after its resume"
    return None


def survives(base: Path, mode: str, point: int) -> tuple[bool, str | None]:
    """Strike once; return whether the blow fell, and what was wrong afterwards."""
    folder = base / f"{mode}-{point}"
    save(folder, 1)
    save(folder, OLD)
    pid = os.fork()
    if pid == 0:
        os._exit(child(folder, mode, point))
    _, status = os.waitpid(pid, 0)
    struck = os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == STRUCK
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in {0, STRUCK}:
        return True, "the error did not name the path and the free bytes"
    wrong = wrong_after(folder, mode)
    shutil.rmtree(folder)
    return struck, wrong


def main() -> None:
    """Strike at every operation there is, until a save gets through untouched."""
    base, mode = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    points, missed, wrong = 0, 0, []
    for point in itertools.count():
        struck, trouble = survives(base, mode, point)
        if trouble:
            wrong.append(f"point {point}: {trouble}")
        points += struck
        # What cannot be refused (an ignored error while old folders are dropped) is no end yet.
        missed = 0 if struck else missed + 1
        if missed > (12 if mode == "full" else 0):
            break
    sys.stdout.write(json.dumps({"points": points, "wrong": wrong}) + "\n")


if __name__ == "__main__":
    main()
