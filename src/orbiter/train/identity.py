"""Decides when two candidates are equal, and writes candidates down and reads them back.

A candidate made of texts, numbers, lists, tuples, dicts, enums, numpy arrays, dataclasses and
pydantic models has content: equal content is one candidate, in every process, whatever the order
of the keys of a dict. It is read back as it was, key order included. Any other candidate equals
another one only if it is hashable and equal, or the same object, and it cannot be read back.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import enum
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orbiter.train.errors import StorageError

_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder().decode
_EXACT = frozenset({str, int, bool, type(None)})
_MARKS = frozenset({"()", "@", "{}", "#", "[]"})
"""Keys that mark a value which JSON has no form for."""
_LEAST_INT, _MOST_INT = -(2**63), 2**64 - 1
"""JSON numbers beyond these are not read back exactly."""

Tree = Any
"""A value made of what JSON has."""


class Codec:
    """Writes candidates as JSON and reads them back, equal and of the same types."""

    def __init__(self) -> None:
        self._types: dict[str, type] = {}
        self._checks_ints = False

    def write(self, candidate: object) -> bytes | None:
        """Return the candidate as JSON, or None if it could not be read back as it is."""
        try:
            return _encode(self._tree(candidate))
        except OverflowError:  # an int too large for JSON: rare, so it costs the others nothing
            self._checks_ints = True
            with contextlib.suppress(TypeError, UnicodeEncodeError, RecursionError):
                return _encode(self._tree(candidate))
        except (TypeError, UnicodeEncodeError, RecursionError):
            return None
        finally:
            self._checks_ints = False
        return None

    def read(self, text: bytes) -> object:
        """Return the candidate that `write` wrote.

        Raises:
            StorageError: it is of a class that this program has not shown to the codec.
        """
        return self._back(_decode(text))

    def learn(self, kind: type) -> None:
        """Make a class known, so that candidates of it can be read back after a restart."""
        self._types[kind.__qualname__] = kind

    def _tree(self, value: Any) -> Tree:  # noqa: ANN401, PLR0911 - any candidate, one line a type
        kind = type(value)
        if kind is int and self._checks_ints and not _LEAST_INT <= value <= _MOST_INT:
            return {"#": "int", "is": hex(value)}
        # By exact type: a subclass, such as an IntEnum, would be read back as a plain int.
        if kind in _EXACT:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"#": "float", "is": repr(value)}
        if kind is list:
            return self._tree_of_parts(value)
        if kind is tuple:
            # JSON has one kind of sequence. Marked, so that a tuple is read back as a tuple and
            # differs from an equal list.
            return {"()": self._tree_of_parts(value)}
        if kind is dict:
            return self._tree_of_dict(value)
        if isinstance(value, enum.Enum):
            self.learn(kind)
            return {"@": kind.__qualname__, "in": kind.__module__, "name": value.name}
        if _is_numpy(kind):
            return _tree_of_array(value)
        return self._tree_of_object(kind, value)

    def _tree_of_parts(self, value: Sequence[Any]) -> Sequence[Tree]:
        if not self._checks_ints and _EXACT.issuperset(map(type, value)):
            return value  # a long flat genome needs no closer look
        return [self._tree(part) for part in value]

    def _tree_of_dict(self, value: Mapping[Any, Any]) -> Tree:
        # A user's dict with a key such as "@" would be read back as a class, so it is written as
        # pairs.
        if all(type(key) is str for key in value) and not _MARKS & value.keys():
            return {key: self._tree(part) for key, part in value.items()}
        return {"{}": [[self._tree(key), self._tree(part)] for key, part in value.items()]}

    def _tree_of_object(self, kind: type, value: Any) -> Tree:  # noqa: ANN401 - any candidate
        tree: dict[str, Tree] = {"@": kind.__qualname__, "in": kind.__module__}
        if dataclasses.is_dataclass(kind):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
        elif _is_pydantic(kind):
            # Iterating over a pydantic model yields its fields and its extra ones.
            fields = dict(value)
            # Private attributes are part of the state but not of the fields.
            if value.__pydantic_private__:
                tree["private"] = self._tree_of_dict(value.__pydantic_private__)
        else:
            raise TypeError(f"{kind.__name__} has no content that could be written down")
        self.learn(kind)
        tree["fields"] = {name: self._tree(part) for name, part in fields.items()}
        return tree

    def _back(self, value: Tree) -> Any:  # noqa: ANN401, PLR0911 - any candidate, one line a form
        if isinstance(value, list):
            return [self._back(part) for part in value]
        if not isinstance(value, dict):
            return value
        if "()" in value:
            return tuple(self._back(part) for part in value["()"])
        if "{}" in value:
            return {self._back(key): self._back(part) for key, part in value["{}"]}
        if "#" in value:
            return int(value["is"], 16) if value["#"] == "int" else float(value["is"])
        if "[]" in value:
            return _array_of(value)
        if "@" in value:
            return self._object_of(value)
        return {key: self._back(part) for key, part in value.items()}

    def _object_of(self, tree: Mapping[str, Tree]) -> object:
        kind: Any = self._types.get(tree["@"]) or _loaded_class(tree["in"], tree["@"])
        if kind is None:
            raise StorageError(
                f"the journal holds a candidate of the class {tree['@']!r}, which none of the "
                "initial candidates has: start with the same initial population, or take a new "
                "run_dir"
            )
        if "name" in tree:
            return kind[tree["name"]]
        fields = {name: self._back(part) for name, part in tree["fields"].items()}
        if not _is_pydantic(kind):
            return _dataclass_of(kind, fields)
        # Not validated: a validator may refuse or change what it returned itself, such as a
        # stripped text.
        model = kind.model_construct(**fields)
        if "private" in tree:
            object.__setattr__(model, "__pydantic_private__", self._back(tree["private"]))
        return model


def _loaded_class(module: str, name: str) -> type | None:
    """Return a class by its name from a module that is loaded; nothing is imported."""
    value: object = sys.modules.get(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, type) else None


def _dataclass_of(kind: Any, fields: Mapping[str, object]) -> object:  # noqa: ANN401 - any class
    """Return an instance whose fields are exactly `fields`, whatever its `__init__` computes."""
    given = {f.name: fields[f.name] for f in dataclasses.fields(kind) if f.init}
    try:
        made = kind(**given)  # also sets what is no field
    except Exception:  # the user's own __init__ may need more than fields, as InitVar does
        made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _is_numpy(kind: type) -> bool:
    """Return whether a class is numpy's array or scalar; numpy is not imported for that."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(kind, numpy.ndarray | numpy.generic)


def _tree_of_array(value: Any) -> Tree:  # noqa: ANN401 - numpy is an option
    if value.dtype.hasobject or value.dtype.fields:
        raise TypeError(f"an array of {value.dtype} cannot be written down")
    data = base64.b64encode(value.tobytes()).decode()
    shape = None if _is_numpy_scalar(type(value)) else list(value.shape)
    return {"[]": value.dtype.str, "shape": shape, "data": data}


def _is_numpy_scalar(kind: type) -> bool:
    return issubclass(kind, sys.modules["numpy"].generic)


def _array_of(tree: Mapping[str, Tree]) -> Any:  # noqa: ANN401 - numpy is an option
    import numpy as np

    array = np.frombuffer(base64.b64decode(tree["data"]), np.dtype(tree["[]"]))
    return array[0] if tree["shape"] is None else array.reshape(tree["shape"]).copy()


def _is_pydantic(kind: type) -> bool:
    """Return whether a class is a pydantic model; pydantic is not imported for that.

    Models are read back without validation: they were validated when they were made.
    """
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(kind, pydantic.BaseModel)


def content_key(written: bytes) -> str:
    """Return the identity of a candidate from what `Codec.write` made of it."""
    # Only dicts have an order that does not count.
    if b"{" in written:
        written = _encode_sorted(_sorted_pairs(_decode(written)))
    return hashlib.blake2b(written, digest_size=12).hexdigest()


def _sorted_pairs(tree: Tree) -> Tree:
    """Return the tree with the entries of dicts in one order; other keys are sorted as written."""
    if isinstance(tree, list):
        return [_sorted_pairs(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    parts = {key: _sorted_pairs(part) for key, part in tree.items()}
    if "{}" in parts and len(parts) == 1:
        parts["{}"] = sorted(parts["{}"], key=_encode_sorted)
    return parts


def fallback_key(candidate: object, number: int) -> str:
    """Return an identity for a candidate without content: by its hash, or else by its number."""
    try:
        # The hash of a text changes with every process, so such a key holds in this process only.
        return f"{type(candidate).__qualname__}:{hash(candidate)}"
    except TypeError:
        return f"object:{number}"
