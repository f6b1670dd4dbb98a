"""Checks environment classes and tool functions, and passes tasks to them.

    class Safe:
        def reset(self, code: str) -> str | None:
            self._code, self._open = code, False
            return "Open the safe."

        def turn(self, digits: str) -> str:
            '''Enter digits. Returns whether the safe is open.'''
            self._open = digits == self._code
            return "open" if self._open else "closed"

        def get_reward(self) -> float:
            return float(self._open)

`reset` gets the fields of the task that it names, and returns the observation that the model reads
first. Every other public method is a tool. Some names are reserved and are not tools: `reset`,
`get_reward`, `on_answer(text)` (gets an answer without a call; returns what the model reads next,
or None to end), `close`, and the attribute `done` (true ends the episode).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from orbiter.train.agents.environments.tools import Tool, make_tool
from orbiter.train.agents.plain import as_plain
from orbiter.train.checks import shown
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.trajectory import TrajectoryItem

RESERVED = ("reset", "get_reward", "on_answer", "close")
"""Public methods that are not tools."""


@runtime_checkable
class OffersTools(Protocol):
    """An environment that lists its tools itself, such as an adapter."""

    def offered_tools(self) -> Sequence[Tool]:
        """Return the tools; called after `reset`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An environment that has been checked."""

    name: str
    make: Callable[[], object]
    """Returns a fresh environment, one for each episode."""
    has_reward: bool | None
    """None if that is only known from the environment that `make` returns."""
    functions: tuple[Tool, ...] = ()
    """The tools, if the environment is a list of functions."""


def kind_of(environment: object) -> Kind:
    """Check what was passed as `environment=`.

    Args:
        environment: A class, a function that makes an environment, or a list of tool functions.

    Raises:
        ConfigError: it is something else, or the class lacks something or has an unusable tool.
    """
    if isinstance(environment, list | tuple):
        return _of_functions(environment)
    _refuse_verifiers(environment)
    if isinstance(environment, type):
        return _of_class(environment)
    if callable(environment):
        name = getattr(environment, "__name__", type(environment).__name__)
        make = cast("Callable[[], object]", environment)
        return Kind(name=name, make=make, has_reward=getattr(environment, "has_reward", None))
    if callable(getattr(environment, "reset", None)):
        raise ConfigError(
            f"environment= is an instance of {type(environment).__name__}, which all episodes "
            "would share; pass the class, or a function that makes one"
        )
    raise ConfigError(
        "environment= must be a class with reset() and get_reward(), a function that makes an "
        f"environment, or a list of tool functions, got {shown(environment)}"
    )


def _refuse_verifiers(environment: object) -> None:
    """Refuse objects of the package verifiers, which have a `run` of another kind."""
    kind = environment if isinstance(environment, type) else type(environment)
    # By module name, so that the package need not be installed.
    if any(base.__module__.partition(".")[0] == "verifiers" for base in kind.__mro__):
        raise ConfigError(
            f"environment= is {kind.__name__} of the package verifiers, which is not supported: "
            "its episodes run in programs that it starts itself. Write the tools and the reward "
            "as a class with reset() and get_reward()"
        )


def _of_functions(functions: Sequence[object]) -> Kind:
    if not functions:
        raise ConfigError("environment= is an empty list; give at least one tool function")
    for fn in functions:
        if not callable(fn) or isinstance(fn, type):
            raise ConfigError(f"environment= must list functions, got {shown(fn)}")
    tools = tuple(make_tool(fn) for fn in functions)  # type: ignore[arg-type] # checked above
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"environment= lists two tools with the name {twice!r}")
    return Kind(name="tools", make=lambda: None, has_reward=False, functions=tools)


def _of_class(environment: type) -> Kind:
    name = environment.__name__
    required = [
        parameter.name
        for parameter in _parameters(environment)
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise ConfigError(
            f"{name}() needs {', '.join(required)}; an environment is made without arguments, so "
            f"pass a function: environment=lambda: {name}(...)"
        )
    if not callable(getattr(environment, "reset", None)):
        raise ConfigError(
            f"{name} has no reset(); it gets the fields of the task and returns what the model "
            "reads first, or None"
        )
    if not _tool_names(environment) and not any(
        callable(getattr(environment, hook, None)) for hook in ("on_answer", "offered_tools")
    ):
        raise ConfigError(
            f"{name} has no public method besides {', '.join(RESERVED)}, so the model cannot act; "
            "write a method with a docstring for each tool"
        )
    for method in _tool_names(environment):
        make_tool(_without_self(environment, method), owner=name)
    return Kind(
        name=name,
        make=environment,
        has_reward=callable(getattr(environment, "get_reward", None)),
    )


def _parameters(environment: type) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(environment).parameters.values())
    except (TypeError, ValueError):  # a class written in C
        return []


def _without_self(environment: type, method: str) -> Callable[..., object]:
    """Return a method without `self`, to read its signature before there is an instance."""
    raw = inspect.getattr_static(environment, method)
    if isinstance(raw, staticmethod | classmethod):
        return cast("Callable[..., object]", getattr(environment, method))
    # A bound method hides `self`; the object it is bound to is never used.
    return cast("Callable[..., object]", getattr(environment, method).__get__(object()))


def _tool_names(environment: object) -> list[str]:
    """Return the public methods that are tools, in the order in which they were defined."""
    of = environment if isinstance(environment, type) else type(environment)
    # Base classes first, so that inherited tools keep their order when a subclass adds some.
    names = dict.fromkeys(name for base in reversed(of.__mro__) for name in vars(base))
    return [
        name
        for name in names
        if not name.startswith("_")
        and name not in (*RESERVED, "offered_tools")
        # getattr_static, since a property must not run code during the check.
        and isinstance(
            inspect.getattr_static(of, name, None),
            staticmethod | classmethod | type(_tool_names),
        )
    ]


def tools_of(kind: Kind, environment: object) -> list[Tool]:
    """Return the tools of one environment, after its reset.

    Raises:
        ConfigError: a factory made something without tools and without `on_answer`.
    """
    if kind.functions:
        return list(kind.functions)
    if isinstance(environment, OffersTools):
        return list(environment.offered_tools())
    name = type(environment).__name__
    tools = [make_tool(getattr(environment, n), owner=name) for n in _tool_names(environment)]
    if not tools and not callable(getattr(environment, "on_answer", None)):
        raise ConfigError(f"{name} has no public method besides reset() and get_reward()")
    return tools


def task_fields(task: object) -> dict[str, Any]:
    """Return a task as named fields: what `reset` may ask for.

    A text is the field `prompt`; a dataclass or a pydantic model has its fields. A `TrajectoryItem`
    has `prompt` (its messages, or its state), `answer` (its action), `task_id`, and the fields of
    its metadata.
    """
    if isinstance(task, TrajectoryItem):
        prompt: object = [dict(m) for m in task.messages] if task.messages else task.state
        own = {"prompt": prompt, "answer": task.action, "task_id": task.task_id}
        # The item's own fields win over metadata of the same name.
        return {**(task.metadata or {}), **own}
    task = as_plain(task)
    if isinstance(task, Mapping):
        return {str(name): value for name, value in task.items()}
    return {"prompt": task if isinstance(task, str) else str(task)}


def reset_arguments(reset: Callable[..., object], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task that `reset` asks for; all of them if it takes `**`.

    Raises:
        DataError: the task lacks a field.
    """
    parameters = list(inspect.signature(reset).parameters.values())
    # With ** there is no list of names to select by.
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(fields)
    named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    missing = [p.name for p in named if p.default is p.empty and p.name not in fields]
    if missing:
        raise DataError(
            f"reset() asks for {', '.join(map(repr, missing))}, and the task has "
            f"{', '.join(map(repr, fields)) or 'no fields'}"
        )
    return {p.name: fields[p.name] for p in named if p.name in fields}


def first_messages(
    fields: Mapping[str, Any], observation: object, *, system: str | None
) -> list[dict[str, Any]]:
    """Return the conversation that an episode begins with.

    It is the task's `prompt`, a text or a list of messages, followed by what `reset` returned.

    Raises:
        DataError: there is nothing for the model to read, or something other than text.
    """
    if observation is not None and not isinstance(observation, str):
        raise DataError(f"reset() must return a text or None, got {shown(observation)}")
    messages = _prompt_messages(fields.get("prompt"))
    if observation:
        last = messages[-1] if messages else {"role": ""}
        # Many chat templates refuse two user turns in a row.
        if last["role"] == "user" and isinstance(last.get("content"), str):
            last["content"] = f"{last['content']}\n\n{observation}"
        else:
            messages.append({"role": "user", "content": observation})
    if not messages:
        raise DataError(
            "there is nothing for the model to read: the task has no 'prompt' and reset() "
            "returned no text"
        )
    # A task's own system message is not replaced.
    if system and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _prompt_messages(prompt: object) -> list[dict[str, Any]]:
    if prompt is None or isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    if isinstance(prompt, list | tuple) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in prompt
    ):
        return [dict(message) for message in prompt]
    raise DataError(f"prompt must be a text or a list of messages, got {shown(prompt)}")
