"""`python -m orbiter.train.demo.by_doing`: an agent with a tool learns by doing; `make demo-agent`.

The task: "In which room does Ada Brandt's team meet?" The tool `look_up` knows the team of each
person and the room of each team, so the agent has to look twice and then say the room. The model
first imitates a few right episodes, then learns from its own whole episodes by reward. An exam on
people that no training saw measures it before and after, on the same tasks with the same seeds.

Options: --quick (seconds, on a model too small to learn it), --seed N, --minutes M, --out FOLDER.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from orbiter.train.agents.environments import make_tool
from orbiter.train.errors import TrainError
from orbiter.train.evaluation import Interval, mean_interval, paired_difference
from orbiter.train.report import Exam, Story, Task, keep_story, write_report
from orbiter.train.seeding import sub_random
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.storage import atomic_write
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import VeRLConfig, VeRLTrainer

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
    shown: int = 8
    """Right episodes to imitate."""
    tasks: int = 48
    """Tasks to learn from by doing."""
    held_out: int = 24
    """Tasks of the exam, which are in no other part."""
    attempts: int = 2
    """Episodes of each task in an exam."""
    batch_size: int = 4
    group_size: int = 6
    sft_epochs: int = 2
    sft_learning_rate: float = 5e-5
    learning_rate: float = 2e-5
    minutes: float = 6.0
    """Time for learning by doing; the rest takes about four minutes on two cores."""


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
    """The environment: who is in which team, and which team meets where."""

    def reset(self, person: str, team: str, room: str) -> str:
        """Begin a task; return the question."""
        self._known = {person: f"{person}: team {team}", team: f"team {team}: room {room}"}
        self._room, self._said = room, ""
        return question(person)

    def look_up(self, name: str) -> str:
        """Look up a person or a team.

        Args:
            name: The name.
        """
        return self._known.get(name.removeprefix("team "), f"nothing is known about {name}")

    def on_answer(self, text: str) -> str | None:
        """End with the first answer that is no call."""
        self._said = text
        return None

    def get_reward(self) -> float:
        """Return 1 if the answer is the room; a room named in a sentence counts half."""
        said = self._said.strip().rstrip(".")
        return 1.0 if said == self._room else 0.5 * float(self._room in said.split())


def question(person: str) -> str:
    """Return the question about a person."""
    return f"In which room does {person}'s team meet?"


class Parts(NamedTuple):
    """Tasks by their use; no person is in two parts."""

    shown: list[dict[str, str]]
    tasks: list[dict[str, str]]
    held_out: list[dict[str, str]]


def make_parts(sizes: Sizes, seed: int) -> Parts:
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
    return Parts(tasks[:shown], tasks[shown:end], tasks[end : end + sizes.held_out])


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
        for step, name in enumerate((task["person"], task["team"], None)):
            call = None if name is None else _call(step, name)
            answer = task["room"] if name is None else ""
            items.append(
                TrajectoryItem(
                    question(task["person"]),
                    answer if call is None else _written(call),
                    1.0,
                    messages=list(messages),
                    tools=tools,
                    tool_calls=None if call is None else [call],
                    task_id=task["person"],
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


def _written(call: dict[str, Any]) -> str:
    from orbiter.train.chat.tool_calls import write_call

    return write_call(call)


class Measured(NamedTuple):
    """An exam: the mean reward of each task, and an answer to show."""

    scores: list[float]
    outputs: list[str]


async def examine(trainer: VeRLTrainer, parts: Parts, sizes: Sizes) -> Measured:
    """Play the held-out tasks, each as often as `sizes.attempts` says."""
    attempts = (await trainer.assess(parts.held_out, samples=sizes.attempts)).attempts
    groups = [attempts[i : i + sizes.attempts] for i in range(0, len(attempts), sizes.attempts)]
    return Measured(
        [fmean(a.reward or 0.0 for a in group) for group in groups],
        [group[0].output for group in groups],
    )


async def run(sizes: Sizes, folder: Path, seed: int) -> Interval:
    """Imitate, examine, learn by doing, examine again; return the paired gain.

    Raises:
        TrainError: something that the run needs is missing, or it cannot learn.
    """
    parts = make_parts(sizes, seed)
    print(f"imitating {sizes.shown} right episodes")  # noqa: T201 - a script's output
    sft = SFTTrainer(
        SFTConfig(
            model=sizes.model,
            epochs=sizes.sft_epochs,
            batch_size=4,
            learning_rate=sizes.sft_learning_rate,
            output_dir=folder / "sft",
            seed=seed,
        )
    )
    await sft.train(lessons(parts.shown))
    start = await sft.save(folder / "sft" / "model")
    trainer = VeRLTrainer(_config(sizes, start, folder, seed), environment=Directory)
    before = await examine(trainer, parts, sizes)
    print(f"before  reward {mean_interval(before.scores)}")  # noqa: T201 - as above
    print(f"learning by doing, for {sizes.minutes:g} minutes")  # noqa: T201 - as above
    await trainer.train(parts.tasks)
    after = await examine(trainer, parts, sizes)
    gain = paired_difference(after.scores, before.scores)
    _keep(folder, parts, before, after)
    sure = "" if gain.low > 0 else ", which may be chance"
    print(f"after   reward {mean_interval(after.scores)}")  # noqa: T201 - as above
    print(  # noqa: T201 - as above
        f"gain    {gain.mean:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}], task by task{sure}"
    )
    print(f"report  {write_report(folder)}")  # noqa: T201 - as above
    return gain


def _config(sizes: Sizes, start: Path, folder: Path, seed: int) -> VeRLConfig:
    return VeRLConfig(
        model=str(start),
        epochs=100,
        max_seconds=60 * sizes.minutes,
        batch_size=sizes.batch_size,
        group_size=sizes.group_size,
        learning_rate=sizes.learning_rate,
        loss_aggregation="episode",
        max_response_length=40,
        max_turns=5,
        max_flat_steps=200,
        system_prompt=SYSTEM,
        output_dir=folder / "by-doing",
        seed=seed,
    )


def _keep(folder: Path, parts: Parts, before: Measured, after: Measured) -> None:
    """Store what the report and scripts read."""
    exams = [
        Exam(name="before", note="after imitation", scores=before.scores, outputs=before.outputs),
        Exam(name="after", note="learned by doing", scores=after.scores, outputs=after.outputs),
    ]
    tasks = [
        Task(prompt=question(task["person"]), expected=task["room"]) for task in parts.held_out
    ]
    story = Story(
        title="An agent with a tool learns by doing",
        summary="It looks up a person's team, then the team's room. The exam has other people.",
        measure="reward",
        tasks=tasks,
        exams=exams,
    )
    keep_story(folder, story)
    gain = paired_difference(after.scores, before.scores)
    result = {
        "before": mean_interval(before.scores)._asdict(),
        "after": mean_interval(after.scores)._asdict(),
        "gain": gain._asdict(),
    }
    with atomic_write(folder / "result.json") as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")


def main() -> int:
    """Run the demo; return 0, or 1 if something that it needs is missing."""
    parser = argparse.ArgumentParser(prog="python -m orbiter.train.demo.by_doing")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tasks")
    parser.add_argument("--seed", type=int, default=0, help="of tasks, batches and samples")
    parser.add_argument("--minutes", type=float, help="time for learning by doing")
    parser.add_argument("--out", type=Path, help="folder of the run")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    if options.minutes is not None:
        from dataclasses import replace

        sizes = replace(sizes, minutes=options.minutes)
    folder = options.out or Path("runs") / f"demo-agent-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    try:
        asyncio.run(run(sizes, folder, options.seed))
    except TrainError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
