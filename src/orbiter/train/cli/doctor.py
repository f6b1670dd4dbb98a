"""`orbiter-train doctor`: check the installation, and show how to fix each problem."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer

from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.errors import TrainError
from orbiter.train.progress import working

doctor_app = typer.Typer(rich_markup_mode=None)

GIB = 1 << 30
EXTRAS = {
    "train": (("torch", "torch"), ("transformers", "transformers"), ("peft", "peft")),
    "llm": (("openai", "openai"),),
    "capture": (("starlette", "starlette"), ("uvicorn", "uvicorn")),
    "parquet": (("pyarrow", "pyarrow"),),
    "yaml": (("yaml", "pyyaml"),),
    "trackio": (("trackio", "trackio"),),
    "wandb": (("wandb", "wandb"),),
    "tensorboard": (("tensorboard", "tensorboard"),),
    "mlflow": (("mlflow", "mlflow"),),
}
"""Modules and packages of each extra."""
NEEDED = ("train",)
"""Extras that training requires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    what: str
    level: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


@doctor_app.command()
def doctor(*, as_json: JsonFlag = False) -> None:
    """Report installed and missing parts, and how to fix problems."""
    output = Output(as_json=as_json)
    with working("checking", "checks"):
        findings = [finding for look in LOOKS for finding in look()]
    output.table(
        ("", "what", "found", "what to do"),
        [(each.level, each.what, each.found, each.remedy) for each in findings],
    )
    bad = [each.what for each in findings if each.level == "problem"]
    output.say(
        "everything that training needs is installed" if not bad else f"to fix: {', '.join(bad)}"
    )
    output.result({"ok": not bad, "findings": [asdict(each) for each in findings]})
    raise typer.Exit(ExitCode.MISSING if bad else ExitCode.OK)


def _python() -> Iterator[Finding]:
    own = version("orbiter-train")
    yield Finding(what="orbiter-train", level="ok", found=own)
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding(
        what="python",
        level="ok" if fits else "note",
        found=platform.python_version(),
        remedy="" if fits else "3.11 to 3.13 are tested",
    )


def _packages() -> Iterator[Finding]:
    # Looked for without importing, which would take seconds for some.
    for extra, modules in EXTRAS.items():
        absent = [package for module, package in modules if not importlib.util.find_spec(module)]
        versions = ", ".join(f"{p} {_version(p)}" for _, p in modules if p not in absent)
        if not absent:
            yield Finding(what=f"extra {extra}", level="ok", found=versions)
            continue
        yield Finding(
            what=f"extra {extra}",
            level="problem" if extra in NEEDED else "note",
            found=f"without {', '.join(absent)}",
            remedy=f"pip install 'orbiter-train[{extra}]'",
        )


def _device() -> Iterator[Finding]:
    if not importlib.util.find_spec("torch"):
        return
    import torch

    from orbiter.train.engine.arithmetic import choose_dtype, pick_device, processor

    device = pick_device()
    arithmetic = choose_dtype("auto", device)
    yield Finding(
        what="dtype", level="ok", found=f"auto means {arithmetic.dtype} ({arithmetic.reason})"
    )
    if device.type == "cuda":
        # What the driver says, so other processes count too.
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding(
            what="device",
            level="ok" if free > 2 * GIB else "note",
            found=f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free",
            remedy="" if free > 2 * GIB else "stop what uses it (see nvidia-smi), or device=cpu",
        )
        return
    yield Finding(
        what="device",
        level="ok",
        found=f"{device.type}, {processor()}",
        remedy="models up to some 500M parameters train here" if device.type == "cpu" else "",
    )


def _memory() -> Iterator[Finding]:
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    # Free pages alone look alarming on a machine that caches files.
    free = max(page * os.sysconf("SC_AVPHYS_PAGES"), _available())
    enough = free > 4 * GIB
    yield Finding(
        what="memory",
        level="ok" if enough else "note",
        found=f"{free / GIB:.1f} of {total / GIB:.1f} GiB free",
        remedy="" if enough else "smollm2-135m needs 4 GiB; lower micro_batch_tokens, or use LoRA",
    )


def _available() -> int:
    """Return the memory that Linux could provide, caches included."""
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return 0
    lines = facts.read_text(encoding="ascii").splitlines()
    kibibytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable")), "0")
    return int(kibibytes) * 1024


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    enough = free > 5 * GIB
    yield Finding(
        what="disk",
        level="ok" if enough else "note",
        found=f"{free / GIB:.1f} GiB free here",
        remedy=""
        if enough
        else "a checkpoint takes 12 bytes per weight: keep_checkpoints=1, or LoRA",
    )


def _cache() -> Iterator[Finding]:
    from orbiter.train.engine.models.download import cache_folder
    from orbiter.train.engine.models.gguf import CACHED

    folder = cache_folder()
    here = (folder / CACHED).is_dir()
    yield Finding(
        what="model smollm2-135m",
        level="ok" if here else "note",
        found=f"in {folder}" if here else "not downloaded yet",
        remedy="" if here else "the first run that uses it downloads it once (93 MB)",
    )
    writable = os.access(folder if folder.is_dir() else _nearest(folder), os.W_OK)
    if not writable:
        yield Finding(
            what="model cache",
            level="problem",
            found=f"{folder} cannot be written",
            remedy="set ORBITER_TRAIN_CACHE to a writable folder",
        )


def _works() -> Iterator[Finding]:
    """Sample an answer from the tiny model: the one check that everything works together."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return
    import asyncio

    from orbiter.train.verl import VeRLConfig, VeRLTrainer

    config = VeRLConfig(model="tiny", max_response_length=2, device="auto", progress=False)
    trainer = VeRLTrainer(config)
    try:
        asyncio.run(trainer.generate(["Hello."]))
    except (TrainError, ImportError, OSError, RuntimeError) as error:
        yield Finding(
            what="engine",
            level="problem",
            found=" ".join(str(error).split())[:200],
            remedy="pip install --force-reinstall 'orbiter-train[train]'",
        )
        return
    yield Finding(what="engine", level="ok", found="the tiny model answers")


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    *(_python, _packages, _device, _memory, _disk, _cache, _works),
)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _nearest(folder: Path) -> Path:
    return next(parent for parent in folder.parents if parent.is_dir())
