"""Compute rewards in verl's workers, with the same sum, limits and errors as on one machine.

verl calls the function that `load` returns with keyword arguments, once per sample. A fault is
written to a file before it is raised, because verl would only log it, pad the sample's group and
continue training. This file needs neither verl nor Ray.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orbiter.train.errors import CallbackError, TrainError
from orbiter.train.storage import write_file
from orbiter.train.trajectory.codec import decode_item
from orbiter.train.verl.reward import OnRewardError, RewardFn, RewardSpec, score

SHIPMENT, FAULTS = "rewards.json", "faults"
"""The list of rewards, and the folder for faults, both next to the reward module."""
PREFIX = "reward/"
"""Prefix of a reward's name, in the values returned to verl and in metrics."""

ComputeScore = Callable[..., Awaitable[dict[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """The content of the JSON file that configures the reward module."""

    rewards: list[dict[str, Any]]
    """Name, weight and location of each function: a file next to this one, or a module."""
    on_error: OnRewardError
    timeout_seconds: float
    concurrency: int


def load(module: str) -> ComputeScore:
    """Return the function that verl calls, for the reward module at this path."""
    folder = Path(module).parent
    shipment = Shipment(**json.loads((folder / SHIPMENT).read_text(encoding="utf-8")))
    specs: list[RewardSpec] = []
    gates: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    async def compute_score(
        *, solution_str: str, extra_info: Mapping[str, Any], **_: object
    ) -> dict[str, float]:
        try:
            if not specs:
                specs.extend(_spec(folder, each) for each in shipment.rewards)
            gate = gates.setdefault(
                asyncio.get_running_loop(), asyncio.Semaphore(shipment.concurrency)
            )
            async with gate:
                return await _score(shipment, specs, solution_str, extra_info)
        except TrainError as error:
            _note(folder / FAULTS, error)
            raise

    return compute_score


async def _score(
    shipment: Shipment, specs: list[RewardSpec], output: str, extra_info: Mapping[str, Any]
) -> dict[str, float]:
    item = decode_item(str(extra_info["item"]).encode())
    scores = await score(
        [output],
        [item],
        specs,
        on_error=shipment.on_error,
        timeout_seconds=shipment.timeout_seconds,
        concurrency=shipment.concurrency,
        first_index=int(extra_info["index"]),
    )
    named = {PREFIX + name: answers[0] or 0.0 for name, answers in scores.by_name.items()}
    return {"score": scores.total[0] or 0.0, **named, "reward_faults": float(scores.faults)}


def _spec(folder: Path, shipped: Mapping[str, Any]) -> RewardSpec:
    """Make a reward from its description in the JSON file.

    Raises:
        CallbackError: its function is not available in this process; the message gives the reason.
    """
    where = shipped["module"]
    try:
        if shipped["file"]:
            target: Any = _module_at(folder / shipped["file"])
        else:
            target = importlib.import_module(where)
        for name in shipped["function"].split("."):
            target = getattr(target, name)
    except Exception as error:
        raise CallbackError(
            f"reward {shipped['name']!r}: {where}.{shipped['function']} cannot be loaded in verl's "
            f"worker ({type(error).__name__}: {error}); its module, and what that imports, must be "
            "installed in verl's interpreter, on every node"
        ) from error
    fn: RewardFn = target
    return RewardSpec(shipped["name"], shipped["weight"], fn)


def _module_at(path: Path) -> object:
    name = f"orbiter_shipped_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _note(folder: Path, error: TrainError) -> None:
    """Write the fault to the folder that the process that started the job reads."""
    write_file(folder / f"{uuid.uuid4().hex}.json", json.dumps({"fault": str(error)}).encode())
