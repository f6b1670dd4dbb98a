"""Fill a real, small disk, write everything that this package writes, and say what happened.

python full_disk_runs.py FOLDER CASE...
    prints one line of JSON: how often each case met the full disk and what was wrong with it

It must run with its own mounts, where it may mount: `unshare --user --map-root-user --mount`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orbiter.train import RewardSpec, StorageError, TrajectoryDataset, TrajectoryItem
from orbiter.train.cli.app import main as orbiter_train
from orbiter.train.formats.registry import write
from orbiter.train.llm.cache import ResponseCache, request_of
from orbiter.train.report import write_report
from orbiter.train.runlog import RunLog
from orbiter.train.storage import AppendLog, atomic_write, write_file
from tests.children import run_child
from tests.report.folders import training

SIZE = 24 << 20
PAGE = 4096
CONFIG = ("-c", "config.toml")
ITEMS = [TrajectoryItem(f"state {i}", "a" * 400, reward=1.0, episode_id="e") for i in range(60)]
Act = Callable[[Path], object]


class Ballast:
    """A file that leaves the disk with a given number of free bytes."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "ballast"

    def leave(self, free: int) -> None:
        with self.path.open("wb") as file:
            left = os.statvfs(file.fileno())
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize - free)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def append(folder: Path) -> None:
    with AppendLog(folder / "log") as log:
        for _ in range(20):
            log.append(b"x" * 1000)


def capture(folder: Path) -> None:
    with TrajectoryDataset(path=folder / "journal") as dataset:
        for item in ITEMS:
            dataset.capture(item)


def held() -> TrajectoryDataset:
    dataset = TrajectoryDataset()
    for item in ITEMS:
        dataset.capture(item)
    return dataset


def log_a_run(folder: Path) -> None:
    with RunLog(folder / "run", {"model": "tiny"}) as log:
        for step in range(1, 100):
            log.write(step, {"loss": 1.0})
            log.sample(step, {"prompt": "p" * 100})
            log.time(step, {"seconds": 1.0})


def cache(folder: Path) -> None:
    answers = ResponseCache(folder / "cache.sqlite")
    try:
        for i in range(40):
            asked = request_of("m", [{"role": "user", "content": str(i)}], {}, schema=None, index=0)
            answers.put(asked, b"r" * 1000, model="m", cost=0.0)
    finally:
        answers.close()


def report(folder: Path) -> None:
    if not (folder / "run" / "run.json").exists():
        raise AssertionError("prepared before the disk was filled")
    write_report(folder / "run", folder / "report.html")


def save_model(folder: Path) -> None:
    from orbiter.train import VeRLConfig, VeRLTrainer

    trainer = VeRLTrainer(VeRLConfig(model="tiny", progress=False), [RewardSpec("r", 1.0, len)])
    asyncio.run(trainer.save(folder / "model"))


def checkpoint(folder: Path) -> None:
    import torch

    from orbiter.train.engine.checkpoint import Checkpoints

    tensors = {"weights": {"w": torch.ones(5000)}}
    Checkpoints(folder / "checkpoints").save(1, tensors=tensors, state={"step": 1})


def command(*words: str) -> Act:
    """Run a command inside the project that was prepared in the folder."""

    def act(folder: Path) -> None:
        with contextlib.chdir(folder):
            err = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
                try:
                    orbiter_train(words)
                except SystemExit as ended:
                    code = int(ended.code or 0)
            if code == 6:
                raise StorageError(err.getvalue().splitlines()[-1])
            if code:
                raise AssertionError(f"exit {code}: {err.getvalue()[-600:]}")

    return act


def half_written(folder: Path) -> None:
    with atomic_write(folder / "stream.bin") as file:
        for _ in range(30):
            file.write(b"z" * 1000)


CASES: dict[str, tuple[Act, tuple[int, ...]]] = {
    "write_file": (lambda f: write_file(f / "new" / "file", b"x" * 20_000), (0, 1, 4)),
    "atomic_write": (half_written, (0, 1, 4)),
    "AppendLog": (append, (0, 1, 2, 4)),
    "TrajectoryDataset(path=)": (capture, (0, 1, 2, 4)),
    "export_jsonl": (lambda f: held().export_jsonl(f / "a.jsonl"), (0, 1, 3)),
    "export_json": (lambda f: held().export_json(f / "a.json"), (0, 1, 3)),
    "export_csv": (lambda f: held().export_csv(f / "a.csv"), (0, 1, 3)),
    "write(openai-chat)": (lambda f: write(ITEMS, f / "b.jsonl", "openai-chat"), (0, 1, 3)),
    "write(verl)": (lambda f: write(ITEMS, f / "c.parquet", "verl"), (0, 1)),
    "write(parquet)": (lambda f: write(ITEMS, f / "d.parquet", "parquet"), (0, 1)),
    "write(minari)": (lambda f: write(ITEMS, f / "shop-v0", "minari"), (0, 1, 3)),
    "write(datasets)": (lambda f: write(ITEMS, f / "folder", "datasets"), (0, 1, 3)),
    "RunLog": (log_a_run, (0, 1, 2, 3, 4, 5)),
    "ResponseCache": (cache, (0, 1, 4, 9, 12)),
    "write_report": (report, (0, 4, 12)),
    "save a model": (save_model, (0, 1, 100, 380)),
    "Checkpoints": (checkpoint, (0, 1, 3, 6)),
    "init": (command("init", "new"), (0, 1, 2, 3)),
    "train": (command("train", *CONFIG, "--out", "r", "train.epochs=1"), (0, 1, 5)),
    "sft": (command("sft", *CONFIG, "--out", "s", "sft.epochs=1"), (0, 6)),
    "synth": (command("synth", *CONFIG), (0, 1, 2)),
    "evolve": (command("evolve", *CONFIG, "llm.model=tiny", "llm.max_tokens=4"), (0,)),
    "report": (command("report", "run"), (0, 4)),
    "convert": (command("convert", "data.jsonl", "out.csv"), (0,)),
    "data dedup": (command("data", "dedup", "data.jsonl", "--out", "new/kept.jsonl"), (0,)),
}  # fmt: skip


def prepare(folder: Path, name: str) -> None:
    folder.mkdir()
    if name in ("write_report", "report"):
        training(folder / "run", steps=30)
    if name not in ("init",):
        command("init", ".")(folder)


def still_open(disk: Path) -> list[str]:
    """Return the files of the disk that this process has open."""
    gc.collect()
    paths = []
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            paths.append(os.readlink(f"/proc/self/fd/{handle}"))
    return [path for path in paths if path.startswith(f"{disk}/")]


def strike(disk: Path, ballast: Ballast, name: str, pages: int) -> Iterator[str]:
    """Let one case meet the full disk, and yield what was wrong."""
    act = CASES[name][0]
    folder = disk / "work"
    prepare(folder, name)
    ballast.leave(pages * PAGE)
    try:
        act(folder)
        yield f"{pages} pages: it did not notice"
    except StorageError as error:
        text = str(error)
        for part in (str(folder) if name not in RELATIVE else "cannot", "bytes are free"):
            if part not in text:
                yield f"{pages} pages: {part!r} is not in {text!r}"
    except BaseException as error:
        yield f"{pages} pages: {type(error).__name__}: {error}"
    ballast.remove()
    if still := still_open(disk):
        yield f"{pages} pages: still open: {still}"
    if left := [p.name for p in folder.rglob(".*") if p.suffix in (".tmp", ".partial")]:
        yield f"{pages} pages: left {left}"
    if name not in ("train", "sft", "evolve"):  # which take long when they succeed
        yield from afterwards(act, folder, name)
    shutil.rmtree(folder)


def afterwards(act: Act, folder: Path, name: str) -> Iterator[str]:
    """Do the same with room on the disk: every lock must have been released."""
    try:
        if name == "init":  # what is there already is not overwritten
            shutil.rmtree(folder)
            prepare(folder, name)
        act(folder)
    except BaseException as error:
        yield f"afterwards {type(error).__name__}: {error}"


RELATIVE = {"init", "train", "sft", "synth", "evolve", "report", "convert", "data dedup"}
"""Commands, whose messages have the paths as they were given."""


def read_only(disk: Path, name: str) -> Iterator[str]:
    """Let one case meet a disk that is mounted read-only."""
    folder = disk / "work"
    prepare(folder, name)
    if still := still_open(disk):
        yield f"still open: {still}"
        return
    run_child(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        CASES[name][0](folder)
        yield "read-only: it did not notice"
    except StorageError as error:
        if "Read-only" not in str(error) and "cannot be written" not in str(error):
            yield f"read-only: {error}"
    except BaseException as error:
        yield f"read-only: {type(error).__name__}: {error}"
    run_child(["mount", "-o", "remount,rw", str(disk)], check=True)
    shutil.rmtree(folder)


def main() -> None:
    disk = Path(sys.argv[1])
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]
    run_child(mount, check=True)
    ballast = Ballast(disk)
    done: dict[str, Any] = {}
    for name in sys.argv[2:] or CASES:
        wrong = [w for pages in CASES[name][1] for w in strike(disk, ballast, name, pages)]
        wrong += read_only(disk, name)
        done[name] = {"points": len(CASES[name][1]) + 1, "wrong": wrong}
    run_child(["umount", str(disk)])
    sys.stdout.write(json.dumps(done) + "\n")


if __name__ == "__main__":
    main()
