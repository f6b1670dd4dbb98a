"""Write a user's functions so that verl's workers can load them: by import path, else as source.

A function of an importable module is imported by the workers. An object that can write a module
which makes it anew (`module_source`), such as a RewardModel, is sent as that module. A function
from a script or a notebook is sent as plain source, with the imports, constants and functions that
it uses. The resulting file in the run's folder is readable and also runs under another Python
version; a pickled function, which Ray could send, would be neither. Objects without separate source
(a lambda, a partial) are refused before anything starts.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn, Protocol, runtime_checkable

from orbiter.train.callback import USER_MODULE
from orbiter.train.errors import ConfigError

WAY_OUT = (
    "define it with `def` in a module or in your script, so that it can be sent to verl's workers"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Where a worker finds an object."""

    module: str
    """Name of the module that defines it."""
    function: str
    """Its name there; dotted for an attribute."""
    file: str | None
    """File with its source in the run's folder; None if it is imported."""
    source: str | None
    """Content of that file."""
    root: str | None
    """Folder to import the module from; None if the module is installed."""


@runtime_checkable
class Remakeable(Protocol):
    """An object that another process can make anew."""

    def module_source(self) -> str:
        """Return a module that makes it under the name `reward`; ConfigError if it cannot."""


def code_of(fn: Any, what: str, stem: str) -> Code:  # noqa: ANN401 - anything a user passes
    """Return a function in a form that can be sent to the workers.

    Args:
        fn: The function.
        what: What errors call it, such as "reward 'length'".
        stem: Name of the file for its source, without suffix.

    Raises:
        ConfigError: it cannot be sent; names it, the reason and what to do.
    """
    if isinstance(fn, Remakeable) and not isinstance(fn, type):
        try:
            source = fn.module_source()
        except ConfigError as error:
            raise ConfigError(f"{what} cannot be sent to verl: {error}") from error
        head = f'"""The {what}, as it was sent to verl."""\n\n'
        return Code(
            module=stem, function="reward", file=f"{stem}.py", source=head + source, root=None
        )
    # The worker gets exactly this function; source is only the second choice.
    if is_importable(fn):
        return Code(
            module=_import_name(sys.modules[fn.__module__]),
            function=fn.__qualname__,
            file=None,
            source=None,
            root=_root(sys.modules[fn.__module__]),
        )
    named = held_by_module(fn)
    if named is not None:
        return named
    if not isinstance(fn, FunctionType):
        refuse(what, f"it is {_kind(fn)}, which has no source code by itself")
    if fn.__name__ == "<lambda>":
        refuse(what, "a lambda has no name to be found by")
    source = _Source(what).of(fn)
    return Code(
        module=fn.__module__, function=fn.__name__, file=f"{stem}.py", source=source, root=None
    )


def held_by_module(value: object) -> Code | None:
    """Find an object, or the object of a bound method, under a name of an importable module."""
    owner = getattr(value, "__self__", None) if inspect.ismethod(value) else value
    if owner is None or isinstance(owner, type | FunctionType | ModuleType | functools.partial):
        return None
    own = sys.modules.get(type(owner).__module__)
    # The module of its class first: it is where the object most likely is.
    for module in [own, *list(sys.modules.values())]:
        if module is None or module.__name__ == "__main__" or not hasattr(module, "__file__"):
            continue
        for name, held in list(vars(module).items()):
            # By identity: an equal object under another name may have another state.
            if held is owner:
                method = f".{value.__name__}" if inspect.ismethod(value) else ""
                return Code(
                    module=_import_name(module),
                    function=name + method,
                    file=None,
                    source=None,
                    root=_root(module),
                )
    return None


def imported_packages(code: Code) -> list[str]:
    """Return the packages that the module or the source of an object imports, sorted.

    The standard library and the module's own package are left out.
    """
    text = code.source
    if text is None:
        module = sys.modules.get(USER_MODULE + code.module) or sys.modules[code.module]
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py"):
            return []
        text = Path(file).read_text(encoding="utf-8")
    # The package itself is sent or installed as a whole.
    own = {code.module.partition(".")[0], *sys.stdlib_module_names}
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return sorted(names - own)


def _kind(fn: object) -> str:
    return "a partial" if isinstance(fn, functools.partial) else f"of type {type(fn).__name__}"


def refuse(what: str, why: str, way_out: str = WAY_OUT) -> NoReturn:
    """Refuse to send an object.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"{what} cannot be sent to verl: {why}; {way_out}")


def is_importable(value: object) -> bool:
    """Return whether another process gets this same object by importing it."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    qualified = getattr(value, "__qualname__", None)
    if module is None or module.__name__ == "__main__" or qualified is None:
        return False
    named: object = module
    for part in qualified.split("."):
        named = getattr(named, part, None)
    # A decorator may have put something else under the name.
    return named is value


def _import_name(module: ModuleType) -> str:
    """Return the name under which another process imports a module, given its root folder."""
    if module.__name__.startswith(USER_MODULE) and module.__file__ is not None:
        return Path(module.__file__).stem
    return module.__name__


def _root(module: ModuleType) -> str | None:
    """Return the folder that a module is imported from, or None if it is an installation's."""
    if module.__file__ is None:
        return None
    file = Path(module.__file__).resolve()
    # As many folders up as the module is deep in its package.
    up = module.__name__.count(".") + (file.name == "__init__.py")
    root = file.parents[up]
    installed = {"site-packages", "dist-packages", f"python{sys.version_info[0]}"}
    inside = any(part in installed or part.startswith("python3.") for part in root.parts)
    return None if inside else str(root)


@dataclass(slots=True)
class _Source:
    """Collects a function's source and the source of everything it uses."""

    what: str
    imports: dict[str, str] = field(default_factory=dict[str, str])
    constants: dict[str, str] = field(default_factory=dict[str, str])
    functions: dict[str, str] = field(default_factory=dict[str, str])
    meant: dict[str, object] = field(default_factory=dict[str, object])
    """The object of each name; two functions must not use a name for different objects."""

    def of(self, fn: Callable[..., object]) -> str:
        """Return a module that defines `fn`."""
        self._add(fn.__name__, fn)
        parts = [
            f'"""The {self.what}, as it was sent to verl."""',
            "from __future__ import annotations",
            "\n".join(self.imports.values()),
            "\n".join(self.constants.values()),
            *self.functions.values(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _add(self, name: str, value: object) -> None:
        if name in self.meant:
            if self.meant[name] is not value and self.meant[name] != value:
                refuse(self.what, f"the name {name!r} means two things in what it uses")
            return
        # Before what it uses: two functions may call each other.
        self.meant[name] = value
        if isinstance(value, ModuleType):
            self.imports[name] = f"import {_import_name(value)} as {name}"
        elif callable(value) and is_importable(value):
            self._import(name, value)
        elif isinstance(value, FunctionType):
            self._define(name, value)
        else:
            self._keep(name, value)

    def _import(self, name: str, value: object) -> None:
        qualified: str = getattr(value, "__qualname__", "")
        # Such as a method or an inner class.
        if "." in qualified:
            refuse(self.what, f"{name!r} is {qualified}, which no import statement names")
        module = _import_name(sys.modules[value.__module__])
        self.imports[name] = f"from {module} import {qualified} as {name}"

    def _define(self, name: str, fn: FunctionType) -> None:
        if fn.__name__ != name:
            refuse(self.what, f"{name!r} is another name for {fn.__qualname__}")
        try:
            source = textwrap.dedent(inspect.getsource(fn))
            tree = ast.parse(source).body[0]
        except (OSError, TypeError, SyntaxError) as error:
            refuse(self.what, f"the source of {fn.__qualname__} cannot be read ({error})")
        if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
            refuse(self.what, f"{fn.__qualname__} is not defined with def")
        # What it uses comes before it in the file.
        for used, value in _used(fn, tree):
            self._add(used, value)
        self.functions[name] = source.rstrip()

    def _keep(self, name: str, value: object) -> None:
        written = _written(value)
        if written is None:
            kind = type(value).__name__
            refuse(self.what, f"it uses {name!r}, a {kind} that cannot be written as source")
        self.constants[name] = f"{name} = {written}"


def _written(value: object) -> str | None:
    """Return source code that creates an equal value; None if that is not possible."""
    if isinstance(value, frozenset):
        inner = _written(set(value))
        return None if inner is None else f"frozenset({inner})"
    if isinstance(value, re.Pattern):
        return f"__import__('re').compile({value.pattern!r}, {value.flags})"
    try:
        # Read back, because not every repr is source that gives an equal value.
        return repr(value) if ast.literal_eval(repr(value)) == value else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _used(
    fn: FunctionType, tree: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[str, object]]:
    """Yield every name that a function uses from outside, with its value."""
    outside: dict[str, object] = {**fn.__globals__, **_closed_over(fn)}
    # Evaluated when the function is defined, so they are not among its code's names.
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
