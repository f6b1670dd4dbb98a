"""Send a user's agent to verl's workers, with the settings of its episodes.

A function, or an object that a module holds under a name, goes by import path; a function of a
script goes as source. A command goes as its words and is started on the worker's machine. An
environment goes by the import path of its class, its factory or its tool functions.

The workers read all of it from one JSON file (`inside/shipment.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from orbiter.train.agents.command import CommandAgent
from orbiter.train.agents.environments.player import EnvironmentAgent
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.cluster.sources import (
    Code,
    code_of,
    held_by_module,
    imported_packages,
    is_importable,
    refuse,
)
from orbiter.train.verl.environments import ENVIRONMENT
from orbiter.train.verl.reward import RewardSpec

STEM = "agent"
"""Name of the file that has the source of an agent, without suffix."""
OF_OBJECTS = (
    "assign it to a name in a module (`desk = Desk()` in desk.py) and pass desk.desk, or pass a "
    "function that makes it"
)
OF_ENVIRONMENTS = "define it in a module that the workers can import, not in a script or a function"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedAgent:
    """An agent in the form that is sent to the workers."""

    kind: str
    """"function" (also an object with `run`), "command", "environment" or "tools"."""
    code: tuple[Code, ...] = ()
    """Where the function, the object, or the parts of the environment are found."""
    words: tuple[str, ...] = ()
    folder: str | None = None
    """Working directory of a command, which every node must have."""
    system_prompt: str | None = None
    packages: Mapping[str, str | None]
    """The packages that its code imports, each with the version that is installed here."""

    @property
    def roots(self) -> list[str]:
        """Folders that its modules are imported from."""
        return [code.root for code in self.code if code.root is not None]

    @property
    def modules(self) -> list[str]:
        """Modules that the workers import."""
        return [code.module for code in self.code if code.file is None]

    def described(self) -> dict[str, Any]:
        """Return what the workers read, as JSON holds it."""
        return {
            "kind": self.kind,
            "code": [
                {"module": code.module, "function": code.function, "file": code.file}
                for code in self.code
            ],
            "words": list(self.words),
            "folder": self.folder,
            "system_prompt": self.system_prompt,
            "packages": dict(self.packages),
        }


def ship_agent(agent: object) -> ShippedAgent:
    """Return an agent in a form that can be sent to the workers.

    Raises:
        ConfigError: it cannot be sent; says why, and what to do.
    """
    # Before the check for `run`, which both of these classes have as well.
    if isinstance(agent, CommandAgent):
        return _command(agent)
    if isinstance(agent, EnvironmentAgent):
        return _environment(agent)
    if callable(getattr(agent, "run", None)):
        # A worker cannot make the same object anew: it must find it under a name.
        code = held_by_module(agent)
        if code is None:
            refuse(
                f"the agent, an object of {type(agent).__name__},",
                "no module holds it under a name",
                OF_OBJECTS,
            )
    else:
        named = getattr(agent, "__qualname__", type(agent).__name__)
        code = code_of(agent, f"agent {named!r}", STEM)
    return ShippedAgent(kind="function", code=(code,), packages=_versions([code]))


def sendable_rewards(agent: object, rewards: Sequence[RewardSpec]) -> list[RewardSpec]:
    """Return the rewards without the one of an environment, which the workers make anew."""
    # Its function is bound to the environment of this process.
    own = isinstance(agent, EnvironmentAgent)
    return [spec for spec in rewards if not (own and spec.name == ENVIRONMENT)]


def _command(agent: CommandAgent) -> ShippedAgent:
    # Given values would be written into the run's folder; names of variables are not secret.
    if agent.variables:
        raise ConfigError(
            f"CommandAgent(variables=) with {', '.join(sorted(agent.variables))} cannot be sent to "
            "verl, whose files must not hold secrets; set them in this process's environment and "
            "name them in environment_variables="
        )
    return ShippedAgent(
        kind="command", words=tuple(agent.words), folder=str(agent.folder), packages={}
    )


def _environment(agent: EnvironmentAgent) -> ShippedAgent:
    parts = agent.environment
    listed = list(parts) if isinstance(parts, list | tuple) else [parts]
    code = []
    for part in listed:
        what = f"environment {getattr(part, '__qualname__', agent.kind.name)!r}"
        # Not as source, as a reward may go: the methods of a class may use anything in its module.
        if not is_importable(part) and held_by_module(part) is None:
            refuse(what, "no module defines it under this name", OF_ENVIRONMENTS)
        code.append(code_of(part, what, STEM))
    return ShippedAgent(
        kind="tools" if agent.kind.functions else "environment",
        code=tuple(code),
        system_prompt=agent.system_prompt,
        packages=_versions(code),
    )


def _versions(code: Sequence[Code]) -> dict[str, str | None]:
    """Return the packages that some code imports, each with its version here."""
    distributions = packages_distributions()
    names = sorted({name for each in code for name in imported_packages(each)})
    return {name: _version(distributions.get(name, [])) for name in names}


def _version(distributions: Sequence[str]) -> str | None:
    """Return the version of a package that one distribution provides; None if it is not known."""
    try:
        # A namespace package belongs to several distributions, and none of them has its version.
        return version(distributions[0]) if len(set(distributions)) == 1 else None
    except PackageNotFoundError:
        return None


def written_tasks(tasks: Sequence[object]) -> list[str | None]:
    """Return the tasks as JSON; None for a TrajectoryItem, which has its own form.

    Raises:
        DataError: a task would not come out of JSON as it went in.
    """
    return [
        None if isinstance(task, TrajectoryItem) else _written(task, index)
        for index, task in enumerate(tasks)
    ]


def _written(task: object, index: int) -> str:
    why = "it does not come out of JSON as it went in"
    try:
        text = json.dumps(task, ensure_ascii=False)
        # Tuples become lists and numbers as keys become texts, which the agent would trip over.
        if json.loads(text) == task:
            return text
    except (TypeError, ValueError, RecursionError) as error:
        why = str(error)
    raise DataError(
        f"task {index} cannot be sent to verl's workers ({why}): {str(task)[:60]!r}; use texts, "
        "numbers, lists, and dicts with texts as keys"
    )
