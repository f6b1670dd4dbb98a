"""`python -m orbiter.train.demo.by_doing`: an agent with a tool learns by reward.

The task: "In which room does Ada Brandt's team meet?" The tool `look_up` knows the team of each
person and the room of each team, so the agent has to look twice and then say the room. The model
first imitates a few right episodes, then learns from its own whole episodes by reward. An exam on
people that no training saw measures it before and after, on the same tasks with the same seeds.

Options: --quick (seconds, on a model too small to learn it), --seed N, --minutes M, --out FOLDER.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from orbiter.train.agents.environments import make_tool
from orbiter.train.chat.tool_calls import write_call
from orbiter.train.demo.course import Course, carry_out, command_line, take
from orbiter.train.evaluation import Interval
from orbiter.train.report import Task
from orbiter.train.seeding import sub_random
from orbiter.train.trajectory import TrajectoryItem

FIRST = ["Ada", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jana", "Karl", "Lena"]
LAST = ["Brandt", "Cole", "Diaz", "Eriksen", "Fischer", "Gallo", "Haas", "Ito", "Jensen", "Kovac"]
TEAMS = ["Amber", "Birch", "Cedar", "Delta", "Ember", "Fjord", "Grove", "Heron"]
SYSTEM = (
    'Use the tool look_up(name) to find things. Call it like this: <tool_call>{"name": "look_up", '
    '"arguments": {"name": "..."}}</tool_call> When you know the room, answer with its number only.'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large a run is."""

    model: str = "smollm2-135m"
    shown: int = 6
    """Right episodes to imitate."""
    tasks: int = 60
    """Tasks for learning from the agent's own episodes."""
    held_out: int = 24
    """Tasks of the exam, which are in no other part."""
    attempts: int = 2
    """Episodes of each task in an exam."""
    batch_size: int = 4
    group_size: int = 4
    sft_epochs: int = 2
    sft_learning_rate: float = 4e-5
    learning_rate: float = 3e-5
    minutes: float = 6.0
    """Time for learning by doing; the rest takes about two minutes."""


QUICK = Sizes(
    model="tiny",
    shown=2,
    tasks=4,
    held_out=2,
    attempts=1,
    batch_size=2,
    group_size=2,
    sft_epochs=1,
    minutes=0.05,
)
"""Every stage within seconds, on a model too small to learn the task: for tests."""


class Directory:
    """The environment: each person's team, and each team's room."""

    def reset(self, person: str, team: str, room: str) -> str:
        """Begin a task; return the question."""
        self._known = {person: f"{person}: team {team}", team: f"team {team}: room {room}"}
        self._room, self._last_answer = room, ""
        return question(person)

    def look_up(self, name: str) -> str:
        """Look up a person or a team.

        Args:
            name: The name.
        """
        return self._known.get(name.removeprefix("team "), f"nothing is known about {name}")

    def on_answer(self, text: str) -> str | None:
        """End with the first answer that is not a call."""
        self._last_answer = text
        return None

    def get_reward(self) -> float:
        """Return 1 if the answer is the room; a room named in a sentence counts half."""
        answer = self._last_answer.strip().rstrip(".")
        return 1.0 if answer == self._room else 0.5 * float(self._room in answer.split())


def question(person: str) -> str:
    """Return the question about a person."""
    return f"In which room does {person}'s team meet?"


class TaskParts(NamedTuple):
    """Tasks by their use; no person is in two parts."""

    shown: list[dict[str, str]]
    tasks: list[dict[str, str]]
    held_out: list[dict[str, str]]


def make_parts(sizes: Sizes, seed: int) -> TaskParts:
    """Make the tasks of a run."""
    generator = sub_random(seed, "directory")
    people = [f"{first} {last}" for first in FIRST for last in LAST]
    generator.shuffle(people)
    tasks = [
        {
            "person": person,
            "team": generator.choice(TEAMS),
            "room": str(generator.randrange(100, 1000)),
        }
        for person in people
    ]
    shown, end = sizes.shown, sizes.shown + sizes.tasks
    return TaskParts(tasks[:shown], tasks[shown:end], tasks[end : end + sizes.held_out])


def lessons(shown: Sequence[dict[str, str]]) -> list[TrajectoryItem]:
    """Return every turn of a right episode for each task, to imitate."""
    tools = [make_tool(Directory().look_up).described()]
    items = []
    for task in shown:
        world = Directory()
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": world.reset(**task)},
        ]
        # Two look-ups, and then the answer.
        for step, name in enumerate((task["person"], task["team"], None)):
            call = None if name is None else _call(step, name)
            answer = task["room"] if name is None else ""
            items.append(
                TrajectoryItem(
                    question(task["person"]),
                    answer if call is None else write_call(call),
                    1.0,
                    messages=list(messages),
                    tools=tools,
                    tool_calls=None if call is None else [call],
                    task_id=task["person"],
                    episode_id=task["person"],
                )
            )
            if call is not None and name is not None:
                messages += [
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": call["id"], "content": world.look_up(name)},
                ]
    return items


def _call(step: int, name: str) -> dict[str, Any]:
    arguments = json.dumps({"name": name})
    return {
        "id": f"call_{step}",
        "type": "function",
        "function": {"name": "look_up", "arguments": arguments},
    }


def make_course(sizes: Sizes, seed: int) -> Course:
    """Return the course: lessons, tasks and exam."""
    parts = make_parts(sizes, seed)
    return Course(
        title="An agent with a tool learns by doing",
        summary="It looks up a person's team, then the team's room. The exam has other people.",
        model=sizes.model,
        environment=Directory,
        lessons=lessons(parts.shown),
        tasks=parts.tasks,
        held_out=parts.held_out,
        shown=[
            Task(prompt=question(task["person"]), expected=task["room"]) for task in parts.held_out
        ],
        attempts=sizes.attempts,
        minutes=sizes.minutes,
        sft={
            "epochs": sizes.sft_epochs,
            "batch_size": 2,
            "learning_rate": sizes.sft_learning_rate,
        },
        settings={
            "batch_size": sizes.batch_size,
            "group_size": sizes.group_size,
            "learning_rate": sizes.learning_rate,
            "max_response_length": 40,
            "max_turns": 4,
            "system_prompt": SYSTEM,
        },
    )


async def run(sizes: Sizes, folder: Path, seed: int) -> Interval:
    """Take the course; return the paired gain.

    Raises:
        TrainError: something that the run needs is missing, or it cannot learn.
    """
    return await take(make_course(sizes, seed), folder, seed)


def main() -> int:
    """Run the demo; return 0, or 1 if something that it needs is missing."""
    parser = command_line("orbiter.train.demo.by_doing", "An agent with a tool learns by doing.")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tasks")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    if options.minutes is not None:
        sizes = replace(sizes, minutes=options.minutes)
    return carry_out(lambda folder: run(sizes, folder, options.seed), options.out, "demo-agent")


if __name__ == "__main__":
    sys.exit(main())
