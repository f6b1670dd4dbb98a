"""Send reward functions to verl's workers: by import path if possible, else as source code.

A function of an importable module is imported by the workers. A function from a script or a
notebook is sent as plain source, with the imports, constants and functions that it uses. The
resulting file in the run's folder is readable and also runs under another Python version; a
pickled function, which Ray could send, would be neither. Objects without separate source (a lambda,
a bound method) are refused before anything starts.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

from orbiter.train.errors import ConfigError
from orbiter.train.verl.reward import RewardSpec

MODULE = '''"""The rewards of this run, as verl calls them; `rewards.json` lists them."""

from orbiter.train.verl.cluster.inside.reward import load

compute_score = load(__file__)
'''
"""Source of the module that verl loads."""
WAY_OUT = (
    "define it with `def` in a module or in your script, so that it can be sent to verl's workers"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A reward in the form that is sent to the workers."""

    name: str
    weight: float
    module: str
    """Name of the module that defines the function."""
    function: str
    file: str | None
    """File with its source, next to the reward module; None if the function is imported."""
    source: str | None
    """Content of that file."""
    root: str | None
    """Folder to import the module from; None if the module is installed."""


def ship(rewards: Sequence[RewardSpec]) -> list[Shipped]:
    """Return each reward in a form that can be sent to the workers.

    Raises:
        ConfigError: a reward cannot be sent; names the reward, the reason and what to do.
    """
    return [_ship(spec, f"reward_{place}") for place, spec in enumerate(rewards)]


def _ship(spec: RewardSpec, stem: str) -> Shipped:
    fn: Any = spec.fn
    if spec.judge is not None:
        raise ConfigError(
            f"reward {spec.name!r} is a judge, whose model, cache and limits are in this process; "
            "verl's workers cannot reach them: use backend='local', or write a function that asks "
            "your endpoint"
        )
    shipped = functools.partial(Shipped, name=spec.name, weight=float(spec.weight))
    if _importable(fn):
        return shipped(
            module=fn.__module__,
            function=fn.__qualname__,
            file=None,
            source=None,
            root=_root(sys.modules[fn.__module__]),
        )
    if not isinstance(fn, FunctionType):
        _refuse(spec, f"it is {_kind(fn)}, which has no source code by itself")
    if fn.__name__ == "<lambda>":
        _refuse(spec, "a lambda has no name to be found by")
    source = _Source(spec).of(fn)
    return shipped(
        module=fn.__module__, function=fn.__name__, file=f"{stem}.py", source=source, root=None
    )


def _kind(fn: object) -> str:
    return "a partial" if isinstance(fn, functools.partial) else f"of type {type(fn).__name__}"


def _refuse(spec: RewardSpec, why: str) -> NoReturn:
    raise ConfigError(f"reward {spec.name!r} cannot be sent to verl: {why}; {WAY_OUT}")


def _importable(found: object) -> bool:
    """Return whether another process gets this same object by importing it."""
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    qualified = getattr(found, "__qualname__", None)
    if module is None or module.__name__ == "__main__" or qualified is None:
        return False
    named: object = module
    for part in qualified.split("."):
        named = getattr(named, part, None)
    return named is found


def _root(module: ModuleType) -> str | None:
    """Return the folder that a module is imported from, or None if it is an installation's."""
    if module.__file__ is None:
        return None
    file = Path(module.__file__).resolve()
    up = module.__name__.count(".") + (file.name == "__init__.py")
    root = file.parents[up]
    installed = {"site-packages", "dist-packages", f"python{sys.version_info[0]}"}
    inside = any(part in installed or part.startswith("python3.") for part in root.parts)
    return None if inside else str(root)


@dataclass(slots=True)
class _Source:
    """Collects a function's source and the source of everything it uses."""

    spec: RewardSpec
    imports: dict[str, str] = field(default_factory=dict[str, str])
    constants: dict[str, str] = field(default_factory=dict[str, str])
    functions: dict[str, str] = field(default_factory=dict[str, str])
    meant: dict[str, object] = field(default_factory=dict[str, object])
    """The object of each name; two functions must not use a name for different objects."""

    def of(self, fn: Callable[..., object]) -> str:
        """Return a module that defines `fn`."""
        self._add(fn.__name__, fn)
        parts = [
            f'"""Reward {self.spec.name!r}, as it was sent to verl."""',
            "from __future__ import annotations",
            "\n".join(self.imports.values()),
            "\n".join(self.constants.values()),
            *self.functions.values(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _add(self, name: str, value: object) -> None:
        if name in self.meant:
            if self.meant[name] is not value and self.meant[name] != value:
                _refuse(self.spec, f"the name {name!r} means two things in what it uses")
            return
        self.meant[name] = value
        if isinstance(value, ModuleType):
            self.imports[name] = f"import {value.__name__} as {name}"
        elif callable(value) and _importable(value):
            self._import(name, value)
        elif isinstance(value, FunctionType):
            self._define(name, value)
        else:
            self._keep(name, value)

    def _import(self, name: str, value: object) -> None:
        qualified: str = getattr(value, "__qualname__", "")
        if "." in qualified:
            _refuse(self.spec, f"{name!r} is {qualified}, which no import statement names")
        self.imports[name] = f"from {value.__module__} import {qualified} as {name}"

    def _define(self, name: str, fn: FunctionType) -> None:
        if fn.__name__ != name:
            _refuse(self.spec, f"{name!r} is another name for {fn.__qualname__}")
        try:
            source = textwrap.dedent(inspect.getsource(fn))
            tree = ast.parse(source).body[0]
        except (OSError, TypeError, SyntaxError) as error:
            _refuse(self.spec, f"the source of {fn.__qualname__} cannot be read ({error})")
        if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
            _refuse(self.spec, f"{fn.__qualname__} is not defined with def")
        for used, value in _used(fn, tree):
            self._add(used, value)
        self.functions[name] = source.rstrip()

    def _keep(self, name: str, value: object) -> None:
        written = _written(value)
        if written is None:
            kind = type(value).__name__
            _refuse(self.spec, f"it uses {name!r}, a {kind} that cannot be written as source")
        self.constants[name] = f"{name} = {written}"


def _written(value: object) -> str | None:
    """Return source code that creates an equal value; None if that is not possible."""
    if isinstance(value, frozenset):
        inner = _written(set(value))
        return None if inner is None else f"frozenset({inner})"
    if isinstance(value, re.Pattern):
        return f"__import__('re').compile({value.pattern!r}, {value.flags})"
    try:
        return repr(value) if ast.literal_eval(repr(value)) == value else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _used(
    fn: FunctionType, tree: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[str, object]]:
    """Yield every name that a function uses from outside, with its value."""
    outside: dict[str, object] = {**fn.__globals__, **_closed_over(fn)}
    heads = [*tree.decorator_list, *tree.args.defaults, *filter(None, tree.args.kw_defaults)]
    in_head = {n.id for head in heads for n in ast.walk(head) if isinstance(n, ast.Name)}
    for name in sorted(in_head | set(_names(fn.__code__)) | set(fn.__code__.co_freevars)):
        if name != fn.__name__ and name in outside and not hasattr(builtins, name):
            yield name, outside[name]


def _closed_over(fn: FunctionType) -> Mapping[str, object]:
    cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function's code looks up, including those of inner functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
