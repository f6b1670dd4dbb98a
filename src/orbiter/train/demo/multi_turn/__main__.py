"""`python -m orbiter.train.demo.multi_turn`: imitate multi-turn requests, then learn by doing.

An exam on conversations that no training saw comes before and after. A whole run has
not been measured yet.

Options: --classes NAME ..., --model NAME, --seed N, --minutes M, --out FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orbiter.train.demo.course import Course, carry_out, command_line, take
from orbiter.train.demo.multi_turn.environment import MultiTurn
from orbiter.train.demo.multi_turn.lessons import show_tasks
from orbiter.train.demo.multi_turn.tasks import MODULES, MultiTurnTask, load_tasks
from orbiter.train.errors import DataError
from orbiter.train.evaluation import Interval
from orbiter.train.report import Task
from orbiter.train.seeding import sub_random


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationCounts:
    """How large a run is."""

    model: str = "smollm2-135m"
    classes: Sequence[str] = ("TradingBot",)
    """Conversations whose tools all belong to these classes."""
    shown_share: float = 0.4
    """Share of the conversations that are imitated."""
    held_out_share: float = 0.4
    """Share of the exam; learning by doing has the conversations that are imitated and the rest."""
    attempts: int = 4
    batch_size: int = 2
    group_size: int = 4
    max_response_length: int = 64
    minutes: float = 3.0


class ConversationParts(NamedTuple):
    """Conversations by their use; the exam's are in no other part."""

    shown: list[MultiTurnTask]
    tasks: list[MultiTurnTask]
    held_out: list[MultiTurnTask]


def split_tasks(
    tasks: Sequence[MultiTurnTask], sizes: ConversationCounts, seed: int
) -> ConversationParts:
    """Divide the conversations.

    Raises:
        DataError: there are too few.
    """
    shown, held_out = (
        round(len(tasks) * share) for share in (sizes.shown_share, sizes.held_out_share)
    )
    if not shown or not held_out:
        raise DataError(
            f"{', '.join(sizes.classes)}: only {len(tasks)} conversations; name more classes"
        )
    order = sub_random(seed, "multi-turn").sample(list(tasks), len(tasks))
    return ConversationParts(
        order[:shown], order[: len(order) - held_out], order[len(order) - held_out :]
    )


async def run(
    sizes: ConversationCounts, folder: Path, seed: int, wheel: Path | None = None
) -> Interval:
    """Take the course; return the paired gain of the share of turns.

    Raises:
        TrainError: something that the run needs is missing, or it cannot learn.
    """
    parts = split_tasks(load_tasks(wheel, classes=sizes.classes), sizes, seed)

    class EnvironmentWithWheel(MultiTurn):
        """The environment with this run's wheel."""

        def __init__(self) -> None:
            super().__init__(wheel)

    course = Course(
        title="Multi-turn requests with tools that have a state",
        summary=f"The leaderboard's multi_turn_base, classes {', '.join(sizes.classes)}. A reward "
        "of 1 is a conversation without a wrong turn.",
        model=sizes.model,
        environment=EnvironmentWithWheel,
        lessons=await show_tasks(parts.shown),
        tasks=[{"task_id": task.task_id} for task in parts.tasks],
        held_out=[{"task_id": task.task_id} for task in parts.held_out],
        shown=[
            Task(prompt="\n".join(task.questions), expected="the right state after each turn")
            for task in parts.held_out
        ],
        attempts=sizes.attempts,
        minutes=sizes.minutes,
        sft={"epochs": 2, "batch_size": 1, "learning_rate": 5e-5},
        settings={
            "batch_size": sizes.batch_size,
            "group_size": sizes.group_size,
            "learning_rate": 2e-5,
            "max_response_length": sizes.max_response_length,
            "max_turns": 24,
            "on_truncation": "score",
        },
    )
    return await take(course, folder, seed)


def main() -> int:
    """Run it; return 0, or 1 if something that it needs is missing."""
    parser = command_line(
        "orbiter.train.demo.multi_turn", "Multi-turn requests with tools that have a state."
    )
    parser.add_argument("--classes", nargs="+", choices=list(MODULES), help="of the tools")
    parser.add_argument("--model", help="a folder or a name")
    options = parser.parse_args()
    given = {
        name: value
        for name in ("classes", "model", "minutes")
        if (value := getattr(options, name)) is not None
    }
    sizes = ConversationCounts(**given)
    return carry_out(lambda folder: run(sizes, folder, options.seed), options.out, "multi-turn")


if __name__ == "__main__":
    sys.exit(main())
