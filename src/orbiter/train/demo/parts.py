"""Divides the requests into a held-out part, traces to imitate, and practice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orbiter.train.demo.plan import DemoPlan
from orbiter.train.demo.prompt import render
from orbiter.train.demo.requests import ToolRequest
from orbiter.train.seeding import sub_random
from orbiter.train.synthesis import split_dataset
from orbiter.train.trajectory import TrajectoryItem


class RequestParts(NamedTuple):
    """The requests by their use; no function is in two parts."""

    held_out: list[TrajectoryItem]
    shown: list[TrajectoryItem]
    own: list[TrajectoryItem]


FUNCTION = "function"
"""The metadata entry that names the function a request is for."""
GROUPS = ("task_id", FUNCTION)
"""Metadata entries that keep traces together in a split."""


def split_requests(requests: Sequence[ToolRequest], plan: DemoPlan) -> RequestParts:
    """Divide the requests into the three parts; those of one function stay together."""
    items = list(map(_as_item, requests))
    return RequestParts(*split_dataset(items, plan.shares, seed=plan.seed, group_by=GROUPS))


def further_requests(
    requests: Iterable[ToolRequest], held_out: Sequence[TrajectoryItem]
) -> list[TrajectoryItem]:
    """Return the leaderboard's further requests whose function is not among the held-out ones.

    Every step of GRPO then sees requests that no earlier step has seen, which generalises better
    than further passes over the same ones.
    """
    functions = {item.metadata[FUNCTION] for item in held_out}
    return [
        _as_item(request)
        for request in requests
        if request.id.startswith("multiple") and request.function.name not in functions
    ]


def draw(practice: Sequence[TrajectoryItem], count: int, *, seed: int) -> list[TrajectoryItem]:
    """Return `count` requests in random order, none of them twice before all occur once."""
    order = sub_random(seed, "practice").sample(practice, len(practice))
    return [order[position % len(order)] for position in range(count)]


def _as_item(request: ToolRequest) -> TrajectoryItem:
    return TrajectoryItem(
        render(request), "", metadata={FUNCTION: request.function.name}, task_id=request.id
    )
