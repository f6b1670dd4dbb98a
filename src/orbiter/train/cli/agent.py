"""Load the agent or environment of [agent], read its tasks, and rehearse a run with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orbiter.train.chat.message import text_of
from orbiter.train.chat.tool_calls import input_of, name_of
from orbiter.train.cli.code import load_object
from orbiter.train.cli.options import read_items
from orbiter.train.cli.output import Output, duration, shown
from orbiter.train.cli.settings.config_file import Settings
from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.formats.format import HEAD
from orbiter.train.json_files.records import first_object, read_records
from orbiter.train.json_files.source import Source

if TYPE_CHECKING:
    from orbiter.train.agents.episode import Episode
    from orbiter.train.verl import VeRLTrainer

KINDS = ("run", "command", "environment")
"""The settings of [agent] that name what works on the tasks; exactly one may be set."""
TEXT_CHARS = 600
"""The maximum number of characters shown of a message."""
GIB = 1 << 30


class AgentChoice(NamedTuple):
    """What works on the tasks: an argument of `VeRLTrainer`."""

    agent: object = None
    environment: object = None
    settings: dict[str, object] | None = None
    """The section, as a run's folder stores it."""


def load_agent(settings: Settings) -> AgentChoice | None:
    """Return what [agent] names; None where the section is absent or empty.

    Raises:
        ConfigError: it names none or several, or something that does not exist.
        CallbackError: the user's file raised.
    """
    own = settings.own("agent")
    given = [name for name in KINDS if own.get(name) is not None]
    if not settings.section("agent"):
        return None
    if len(given) != 1:
        listed = " and ".join(given) or "none of them"
        raise ConfigError(
            f"[agent] needs exactly one of {', '.join(KINDS)}, and has {listed}: "
            'run = "my_agent.py:agent", command = "node agent.js", or '
            'environment = "my_env.py:Env"'
        )
    (kind,) = given
    value = str(own[kind])
    if kind == "run":
        return AgentChoice(agent=load_object(value, what="[agent] run"), settings=own)
    if kind == "environment":
        environment = load_object(value, what="[agent] environment")
        return AgentChoice(environment=environment, settings=own)
    from orbiter.train.agents import CommandAgent

    # The command was written with the config in view, so it runs in that folder.
    folder = own.get("folder") or (settings.file.resolve().parent if settings.file else Path.cwd())
    return AgentChoice(
        agent=CommandAgent(value, folder=str(folder)),
        settings={**own, "folder": str(folder)},
    )


def read_tasks(path: str, format_name: str | None) -> Sequence[Any]:
    """Return the tasks of a file.

    Each object of a JSON or JSON lines file is a task as it is, a dict. Items of the package's own
    format, and files whose format was given, become `TrajectoryItem`s.

    Raises:
        DataError: the file has no tasks, or is damaged.
        StorageError: it cannot be read.
    """
    file = Path(path)
    if format_name is not None or file.suffix not in (".jsonl", ".json") or not file.is_file():
        return read_items(path, format_name)
    with file.open("rb") as opened:
        first = first_object(opened.read(HEAD))
    # The package's own items; any other object is a task as the user means it.
    if {"state", "action"} <= first.keys():
        return read_items(path, format_name)
    tasks = [record.value for record in read_records(Source(file, "raise", "error", []))]
    if not tasks:
        raise DataError(f"{path} holds no tasks")
    return tasks


async def rehearse(trainer: VeRLTrainer, tasks: Sequence[Any], output: Output) -> dict[str, Any]:
    """Play an episode of each of two tasks and show them; return the cost of a step.

    Raises:
        CallbackError: an episode failed, or a reward did.
    """
    from orbiter.train.verl.rehearsal import EPISODES

    rehearsal = await trainer.rehearse(list(tasks)[:EPISODES])
    failed: list[str] = []
    for number, attempt in enumerate(rehearsal.attempts, start=1):
        episode = attempt.episode
        assert episode is not None, "a rehearsal plays episodes"
        for line in episode_lines(episode):
            output.say(line)
        parts = ", ".join(f"{name} {shown(value)}" for name, value in attempt.rewards.items())
        output.say(f"  reward  {shown(attempt.reward)}{f' ({parts})' if parts else ''}")
        output.say()
        if episode.failed:
            failed.append(f"episode {number}: {episode.stop_reason}, {episode.error or 'no error'}")
    # After all were shown, because what an agent did before it failed is the best hint.
    if failed:
        raise CallbackError(
            f"{len(failed)} of {len(rehearsal.attempts)} episodes failed: " + "; ".join(failed)
        )
    played = [attempt.episode for attempt in rehearsal.attempts if attempt.episode is not None]
    if not trainer.rewards and not any(episode.step_rewards for episode in played):
        output.say(
            "note: no episode got a reward, so nothing could be learned; set [reward], or let the "
            "agent give one (see docs/guide/train_agent.md)"
        )
    cost = rehearsal.cost
    assert cost is not None, "no episode failed"
    output.table(
        ("a step", "how much"),
        [
            ("episodes", str(cost.episodes)),
            ("tokens", f"{cost.sampled_tokens:,} sampled, {cost.trained_tokens:,} trained over"),
            ("time", f"about {duration(cost.seconds)}, within a factor of three"),
            ("memory", f"about {cost.memory_bytes / GIB:.1f} GiB at the peak"),
        ],
    )
    return cost._asdict()


def episode_lines(episode: Episode) -> Iterable[str]:
    """Return an episode turn by turn, as lines of text."""
    yield f"task      {_cut(str(episode.task))}"
    for number, turn in enumerate(episode.turns, start=1):
        # The part shared with the continued turn, and that turn's answer, were shown already.
        known = 0 if turn.continues is None else len(episode.turns[turn.continues].messages) + 1
        branch = ", a new conversation" if turn.continues is None and number > 1 else ""
        yield f"  turn {number}{branch}"
        for message in turn.messages[known:]:
            yield from _message_lines(message)
        cut_off = ", cut off" if turn.finish_reason == "length" else ""
        yield from _message_lines(turn.reply, f"  ({len(turn.token_ids)} tokens{cut_off})")
    if not episode.failed:
        yield f"  result  {_cut(episode.output)}"
    error = f": {episode.error}" if episode.error else ""
    yield f"  ended   {episode.stop_reason}{error}, after {duration(episode.seconds)}"


def _message_lines(message: Mapping[str, Any], note: str = "") -> Iterable[str]:
    """Return a message and its calls, a line for each; the note goes to the first line."""
    calls = message.get("tool_calls") or []
    text = text_of(message.get("content"))
    lines = [(str(message.get("role", "")), text)] if text or not calls else []
    lines += [("calls", f"{name_of(call)} {input_of(call)}") for call in calls]
    for index, (label, shown_text) in enumerate(lines):
        yield f"    {label:<10}{_cut(shown_text)}{'' if index else note}"


def _cut(text: str) -> str:
    """Return a text on one line, without control characters, cut to what a terminal can show."""
    plain = "".join(c if c.isprintable() else " " for c in text.replace("\n", " ⏎ "))
    if len(plain) <= TEXT_CHARS:
        return plain
    return f"{plain[:TEXT_CHARS]} ... [{len(plain)} characters]"
