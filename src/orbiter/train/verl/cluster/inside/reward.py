"""Compute rewards in verl's workers, with the same sum, limits and errors as on one machine.

verl calls the function that `load` returns with keyword arguments, once per sample. A fault is
written to a file before it is raised, because verl would only log it, pad the sample's group and
continue training. This file needs neither verl nor Ray.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orbiter.train.errors import TrainError
from orbiter.train.storage import write_file
from orbiter.train.trajectory.codec import decode_item
from orbiter.train.verl.cluster.inside.shipment import FAULTS, REWARDS, spec_of
from orbiter.train.verl.reward import OnRewardError, RewardSpec, score

SHIPMENT = REWARDS
"""The list of rewards, next to the reward module."""
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
            # At the first call, in the worker: the module itself must load without the user's code.
            if not specs:
                specs.extend(spec_of(folder, each) for each in shipment.rewards)
            # A semaphore belongs to one event loop, and verl may have several in a process.
            gate = gates.setdefault(
                asyncio.get_running_loop(), asyncio.Semaphore(shipment.concurrency)
            )
            async with gate:
                return await _score(shipment, specs, solution_str, extra_info)
        except TrainError as error:
            note_fault(folder / FAULTS, error)
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
    # verl requires a number in every row; a skipped reward counts as a fault as well.
    named = {PREFIX + name: answers[0] or 0.0 for name, answers in scores.by_name.items()}
    return {"score": scores.total[0] or 0.0, **named, "reward_faults": float(scores.faults)}


def note_fault(folder: Path, error: TrainError) -> None:
    """Write the fault to the folder that the process that started the job reads."""
    write_file(folder / f"{uuid.uuid4().hex}.json", json.dumps({"fault": str(error)}).encode())
