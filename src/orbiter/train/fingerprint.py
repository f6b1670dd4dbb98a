"""Describes a strategy, a scorer or a step so that a resumed run can tell whether it has changed.

A score in a journal is worth something only for the tasks, the metric, the rubric and the models
that it was measured with. So the code of the user's functions and classes is described, and the
values that they hold: tasks, texts, numbers, models. Left out is what changes while a run goes on
(attributes that a method assigns or appends to, containers in a closure), and the code of
libraries. Code is compared as bytecode: comments do not matter, but the Python version does.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import sys
import sysconfig
import types
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orbiter.train.identity import Codec

_SHOWN_CHARS = 40
"""Longest setting that `settings_text` shows as it is."""
_MUTATORS = frozenset(
    [
        "add",
        "append",
        "appendleft",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "popleft",
        "remove",
        "setdefault",
        "sort",
        "update",
    ]
)
_NOT_OURS = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
)
"""Folders of the standard library, of installed packages and of this package."""
_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
)


def fingerprint(strategy: object) -> dict[str, str]:
    """Return a digest of each part of a strategy: its code, and each of its attributes."""
    state = _state_attributes(type(strategy))  # type: ignore[arg-type] # a class can be hashed
    parts: dict[str, object] = {"code": _Description().of_class(type(strategy))}
    for name, value in _attributes(strategy).items():
        if name not in state:
            parts[name.lstrip("_")] = _Description().of(value)
    return {name: digest(part) for name, part in parts.items()}


def settings_text(value: object, *, code: bool = True) -> str:
    """Return what decides the behaviour of an object or a function, as one line for people.

    An object is its class with its settings, such as `Judge(rubric='Is it right?', votes=1)`; long
    or complex settings are digests. A function is its name and a digest of its code.

    Args:
        value: The object or function.
        code: Whether the code of an object's class counts; settings count anyway.
    """
    if isinstance(value, (type, *_FUNCTIONS)):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{name}#{digest(_Description().of(value))}"
    return f"{type(value).__qualname__}({', '.join(_settings(value, code=code))})"


def digest_with_data(function: object) -> str:
    """Return a digest of a function, or a callable object, with all the data that it refers to.

    In contrast to `settings_text`, the containers, whole numbers and flags that a function refers
    to count, and so does the state of objects. So changed data always give another digest, but a
    log that the function keeps does too: take the digest before the first call. With data of a
    library that cannot be described, such as a tensor, each digest is another one.
    """
    return digest(_Description(with_data=True).of(function))


def _settings(value: object, *, code: bool) -> Iterator[str]:
    """Yield `name=setting` for each attribute that no method changes."""
    kind = type(value)
    described = _Description().of_class(kind)
    if code and described != (kind.__qualname__,):
        yield f"code=#{digest(described)}"
    state = _state_attributes(kind)  # type: ignore[arg-type] # a class can be hashed
    for name, held in _attributes(value).items():
        if name not in state:
            yield f"{name.lstrip('_')}={_short(held)}"


def _short(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        if len(text) <= _SHOWN_CHARS:
            return text
    return f"#{digest(_Description().of(value))}"


def digest(description: object) -> str:
    """Return a short name for a description."""
    return hashlib.blake2b(repr(description).encode(), digest_size=8).hexdigest()


class _Description:
    """Describes values by what decides their behaviour; the same in every process."""

    def __init__(self, *, with_data: bool = False) -> None:
        """Begin a description.

        Args:
            with_data: Whether state and the data that functions refer to count too.
        """
        self._with_data = with_data
        self._seen: dict[int, object] = {}
        """Values under description, by id: a cycle ends there. Holding them keeps the ids valid."""

    def of(self, value: Any) -> object:  # noqa: ANN401, PLR0911, PLR0912 - one line a type
        """Return a description made of tuples and texts."""
        if value is None or isinstance(value, bool | int | float | str | bytes | complex | range):
            return repr(value)
        if isinstance(value, Path):
            return str(value)
        if id(value) in self._seen:
            return "seen"
        self._seen[id(value)] = value
        if isinstance(value, enum.Enum):
            return str(value)
        if isinstance(value, list | tuple):
            return (type(value).__name__, *(self.of(part) for part in value))
        # Sorted by text: the order of a set changes with the seed of the hash in every process.
        if isinstance(value, set | frozenset):
            return ("set", *sorted(repr(self.of(part)) for part in value))
        if isinstance(value, Mapping):
            return ("dict", *((self.of(k), self.of(v)) for k, v in value.items()))
        if isinstance(value, type):
            return self.of_class(value)
        if isinstance(value, functools.partial):
            return (self.of(value.func), self.of(value.args), self.of(value.keywords))
        if isinstance(value, types.MethodType):
            return (self.of(value.__self__), self.of(value.__func__))
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.BuiltinFunctionType | types.ModuleType):
            return value.__name__
        return self._of_object(value)

    def of_class(self, kind: type) -> object:
        """Return a class as the names of its bases and the code of what the user wrote."""
        parts: list[object] = [kind.__qualname__]
        for base in kind.__mro__:
            if not _is_ours(sys.modules.get(base.__module__), base):
                continue
            for name, member in sorted(vars(base).items()):
                fn = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(fn, types.FunctionType):
                    parts.append((name, self._of_function(fn)))
                elif isinstance(member, str | float | tuple) and not name.startswith("__"):
                    parts.append((name, self.of(member)))
        return tuple(parts)

    def _of_object(self, value: object) -> object:
        kind = type(value)
        own = getattr(value, "fingerprint", None)
        # An object that knows what decides its results says so by itself, such as a model with its
        # address.
        if isinstance(own, str):
            return (kind.__qualname__, own)
        # Counters and caches change while a run goes on and must not look like another strategy.
        state = self._state(kind)
        # A dataclass or a model is its content. With state among its fields, the content would
        # change.
        written = None if state else Codec().write(value)
        if written is not None:
            return written
        held = {n: self.of(v) for n, v in _attributes(value).items() if n not in state}
        if _describable(kind):
            return (self.of_class(kind), *held.items())
        if self._with_data and hasattr(kind, "__len__"):
            # Data of a library, such as a tensor or a table: what cannot be compared has changed.
            return (kind.__qualname__, uuid.uuid4().hex)
        # Another object of a library is its class: a lock or an HTTP client has no lasting content.
        return kind.__qualname__

    def _state(self, kind: type) -> frozenset[str]:
        """Return the attributes of a class that do not count."""
        if self._with_data:
            return frozenset()
        return _state_attributes(kind)

    def _of_function(self, fn: types.FunctionType) -> object:
        held: dict[str, object] = {}
        is_ours = _is_ours_file(fn.__code__.co_filename)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            if self._counts(value) or not is_ours:  # a library keeps no log in a closure
                held[name] = self.of(value)
        # A library's code is its name: its bytecode changes with its version, its behaviour rarely
        # does.
        if not is_ours:
            return (fn.__module__, fn.__qualname__, *held.items())
        for name in sorted(_global_names(fn.__code__)):
            value = fn.__globals__.get(name)
            if self._counts(value) and self._is_of_module(value, fn):
                held[name] = self.of(value)
        defaults = (self.of(fn.__defaults__), self.of(fn.__kwdefaults__))
        return (_of_code(fn.__code__), defaults, *held.items())

    def _counts(self, value: object) -> bool:
        """Return whether a value that a function refers to decides what it does.

        Containers and counters are left out, as functions keep a log in them, unless data count.
        """
        if isinstance(value, types.BuiltinFunctionType | types.ModuleType):
            return False
        decides = isinstance(value, str | float | tuple) or callable(value)
        return decides or self._with_data

    def _is_of_module(self, value: object, fn: types.FunctionType) -> bool:
        """Return whether a global value belongs to the module of a function.

        An instance names the module of its class as its own, so data are taken from any.
        """
        is_data = self._with_data and not callable(value)
        return is_data or getattr(value, "__module__", fn.__module__) == fn.__module__


def _of_code(code: types.CodeType) -> object:
    constants = tuple(
        _of_code(constant)
        if isinstance(constant, types.CodeType)
        else ("set", *sorted(map(repr, constant)))
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in code.co_consts
    )
    # Without line numbers and local names, so comments and formatting do not count.
    return (code.co_code.hex(), code.co_names, constants)


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names that a function reads, in the functions inside it too."""
    # A global that the function itself assigns is a counter or a cache.
    written = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval not in written:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _attributes(value: object) -> dict[str, Any]:
    """Return the attributes of an object, of slots too."""
    held = dict(getattr(value, "__dict__", {}))
    # An object with slots has no __dict__, and each base class declares only its new ones.
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not name.startswith("__"):
                held[name] = getattr(value, name)
    return held


@functools.cache
def _state_attributes(kind: type) -> frozenset[str]:
    """Return the attributes that a method changes after construction: state, not settings."""
    names: set[str] = set()
    for base in kind.__mro__:
        for name, member in vars(base).items():
            fn = getattr(member, "__func__", member)
            # What only the constructor assigns is a setting.
            if isinstance(fn, types.FunctionType) and name not in {"__init__", "__post_init__"}:
                names |= _changed_by(fn.__code__)
    return frozenset(names)


def _changed_by(code: types.CodeType) -> set[str]:
    """Return the attributes that code assigns, or changes in place as a container."""
    names: set[str] = set()
    instructions = list(dis.get_instructions(code))
    for position, instruction in enumerate(instructions):
        if instruction.opname in {"STORE_ATTR", "DELETE_ATTR"}:
            names.add(instruction.argval)
        elif instruction.opname in {"STORE_SUBSCR", "DELETE_SUBSCR"}:
            # `self.log[key] = value` compiles to: value, self.log, key, STORE_SUBSCR.
            names.update(_attribute_at(instructions, _container(instructions, position)))
        # `self.log.append(x)` compiles to LOAD_ATTR log, then a LOAD_ATTR of the method.
        elif instruction.argval in _MUTATORS:
            names.update(_attribute_at(instructions, position - 1))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _changed_by(constant)
    return names


def _container(instructions: list[dis.Instruction], position: int) -> int:
    """Return the last instruction of `c` in `c[k] = ...`, whose store is at `position`."""
    last = position - 1
    if instructions[last].opname == "SWAP":  # `c[k] += ...` copies c and k first
        while last > 0 and instructions[last].opname != "COPY":
            last -= 1
        last -= 2
    return _before_expression(instructions, last)


def _attribute_at(instructions: list[dis.Instruction], position: int) -> list[str]:
    """Return the attribute `c` if the expression that ends at `position` is `self.c[k]` or so."""
    while position > 0 and instructions[position].opname == "BINARY_SUBSCR":
        position = _before_expression(instructions, position - 1)
    is_attribute = position > 0 and instructions[position].opname == "LOAD_ATTR"
    return [instructions[position].argval] if is_attribute else []


def _before_expression(instructions: list[dis.Instruction], position: int) -> int:
    """Return the instruction before the expression whose last instruction is at `position`."""
    missing = 1
    while position >= 0 and missing > 0:
        instruction = instructions[position]
        # Backwards until one value has been pushed: that is where its expression began.
        missing -= dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        position -= 1
    return position


def _describable(kind: type) -> bool:
    """Return whether an object's attributes say what it does; a lock or a client's do not."""
    return _is_ours(sys.modules.get(kind.__module__), kind) or kind.__module__.startswith(
        "orbiter.train"
    )


def _is_ours(module: types.ModuleType | None, kind: type) -> bool:
    """Return whether the user wrote a class."""
    if kind.__module__ in {"builtins", "typing", "abc"}:
        return False
    file = getattr(module, "__file__", None)
    return file is None or _is_ours_file(file)


@functools.cache
def _is_ours_file(file: str) -> bool:
    """Return whether the user wrote a file; a name that is no path is a console or a notebook."""
    return not file.startswith(_NOT_OURS) and "site-packages" not in file
