"""Load the agent or environment of [agent], and read its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orbiter.train.cli.code import load_object
from orbiter.train.cli.datafiles import read_items
from orbiter.train.cli.settings.config_file import Settings
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.formats.format import HEAD
from orbiter.train.json_files.records import first_object, read_records
from orbiter.train.trajectory.files import Source

KINDS = ("run", "command", "environment")
"""The settings of [agent] of which one says what works on the tasks."""


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
    if {"state", "action"} <= first.keys():
        return read_items(path, format_name)
    tasks = [record.value for record in read_records(Source(file, "raise", "error", []))]
    if not tasks:
        raise DataError(f"{path} holds no tasks")
    return tasks
