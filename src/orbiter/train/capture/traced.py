"""`@traced` makes a function an agent's step, for agents that call their model without HTTP."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from orbiter.train.callback import is_async
from orbiter.train.capture.episode import CURRENT

P = ParamSpec("P")
R = TypeVar("R")


@overload
def traced(fn: Callable[P, R]) -> Callable[P, R]: ...
@overload
def traced(*, agent: str) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def traced(fn: Callable[..., Any] | None = None, *, agent: str | None = None) -> object:
    """Make every call of a function, sync or async, a step of the enclosing episode.

    `state` is the function's one text argument, or its arguments by name as JSON; `action` is its
    result as text. A call that raises leaves no step. Outside of `record` nothing is captured.

    Args:
        fn: The function; omit it to pass `agent`.
        agent: Name stored in the metadata as `traced`; the function's name by default.
    """
    if fn is None:
        return functools.partial(_traced, agent=agent)
    return _traced(fn, agent=agent)


def _traced(fn: Callable[..., Any], *, agent: str | None) -> Callable[..., Any]:
    signature = inspect.signature(fn)
    name = agent or getattr(fn, "__name__", type(fn).__name__)

    def keep(result: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        episode = CURRENT.get()
        if episode is not None:
            given = signature.bind(*args, **kwargs).arguments
            episode.add(_state(given), _text(result), metadata={"traced": name})

    if is_async(fn):

        @functools.wraps(fn)
        async def run_async(*args: object, **kwargs: object) -> object:
            result = await fn(*args, **kwargs)
            keep(result, args, kwargs)
            return result

        return run_async

    @functools.wraps(fn)
    def run(*args: object, **kwargs: object) -> object:
        result = fn(*args, **kwargs)
        keep(result, args, kwargs)
        return result

    return run


def _state(arguments: dict[str, object]) -> str:
    given = {name: value for name, value in arguments.items() if name not in {"self", "cls"}}
    first = next(iter(given.values()), None)
    return first if len(given) == 1 and isinstance(first, str) else _text(given)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
