"""`orbiter-train data show|filter|merge`: print items, select some, or combine files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.cli.options import DataFile, FormatName, read_items, write_items
from orbiter.train.cli.output import JsonFlag, Output, shown
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.trajectory import TrajectoryItem

Target = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]
MinReward = Annotated[float | None, typer.Option(help="Keep items with at least this reward.")]
MaxReward = Annotated[float | None, typer.Option(help="Keep items with at most this reward.")]
Agent = Annotated[str | None, typer.Option(help="Keep the items of this agent.")]
Task = Annotated[str | None, typer.Option(help="Keep the items of this task_id.")]
Episode = Annotated[str | None, typer.Option(help="Keep the items of this episode_id.")]


def show(
    file: DataFile,
    *,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Items to print.")] = 5,
    skip: Annotated[int, typer.Option(min=0, help="Items to skip first.")] = 0,
    format: FormatName = None,
    as_json: JsonFlag = False,
) -> None:
    """Print items in full: what the agent saw, what it did, and the reward."""
    output = Output(as_json=as_json)
    items = read_items(file, format)
    chosen = items[skip : skip + count]
    for row, item in enumerate(chosen, start=skip):
        facts: dict[str, object] = {"reward": shown(item.reward), "task": item.task_id}
        facts |= {"episode": item.episode_id, "step": item.step, "agent": item.agent}
        known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        output.say(f"row {row}: {known}")
        for name, text in (("state", item.state), ("action", item.action)):
            output.say(f"  {name}:")
            for line in _printable(text).split("\n"):
                output.say(f"    {line}")
    output.say(f"{len(chosen)} of {len(items)} items")
    output.result({"items": len(items), "shown": [item.to_dict() for item in chosen]})


def filter_items(
    file: DataFile,
    *,
    out: Target,
    min_reward: MinReward = None,
    max_reward: MaxReward = None,
    agent: Agent = None,
    task: Task = None,
    episode: Episode = None,
    format: FormatName = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the items that meet every condition; items without a reward fail a reward bound."""
    conditions = (min_reward, max_reward, agent, task, episode)
    if all(condition is None for condition in conditions):
        raise ConfigError(
            "give a condition: --min-reward, --max-reward, --agent, --task, --episode"
        )
    require_other([file], out)
    items = read_items(file, format)

    def passes(item: TrajectoryItem) -> bool:
        low = -float("inf") if min_reward is None else min_reward
        high = float("inf") if max_reward is None else max_reward
        # An unknown reward is neither above nor below a bound.
        bounded = min_reward is not None or max_reward is not None
        return (
            (not bounded or (item.reward is not None and low <= item.reward <= high))
            and agent in (None, item.agent)
            and task in (None, item.task_id)
            and episode in (None, item.episode_id)
        )

    kept = [item for item in items if passes(item)]
    if not kept:
        raise DataError(f"none of the {len(items)} items of {file} meets the conditions")
    write_items(kept, out)
    output = Output(as_json=as_json)
    output.say(f"{len(items)} items, {len(kept)} kept in {out}")
    output.result({"items": len(items), "kept": len(kept), "out": str(out)})


def merge(
    files: Annotated[list[Path], typer.Argument(help="Two or more files in any known formats.")],
    *,
    out: Target,
    as_json: JsonFlag = False,
) -> None:
    """Write the items of several files into one, in order; nothing is removed."""
    if len(files) < 2:
        raise ConfigError(f"name at least two files to merge, got {len(files)}")
    require_other(files, out)
    parts = [read_items(file) for file in files]
    items = [item for part in parts for item in part]
    write_items(items, out)
    output = Output(as_json=as_json)
    for file, part in zip(files, parts, strict=True):
        output.say(f"{len(part)} items of {file}")
    output.say(f"{len(items)} items in {out}")
    output.result({"items": len(items), "out": str(out), "files": [str(file) for file in files]})


def require_other(files: list[Path], out: Path) -> None:
    """Refuse to overwrite a file that is read.

    Raises:
        ConfigError: `out` is one of `files`.
    """
    if any(file.resolve() == out.resolve() for file in files):
        raise ConfigError(f"--out names the input file {out}; choose another file")


def _printable(text: str) -> str:
    """Return the text with control characters escaped, so that it cannot drive the terminal."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )
