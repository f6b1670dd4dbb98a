"""Write llama.cpp's file format GGUF, version 3: metadata, then tensors, in one pass.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Each tensor is
made when it is written, so that only one is in memory beside the model.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

from orbiter.train.disk import disk_errors
from orbiter.train.storage import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALIGNMENT = 32
"""Tensors begin at multiples of this many bytes."""
BLOCK = 32
"""Numbers that share a scale in Q8_0."""
QuantType = Literal["F32", "F16", "Q8_0"]


class _Layout(NamedTuple):
    code: int
    numbers: int
    """Numbers in a block."""
    size: int
    """Bytes of a block."""


_LAYOUTS: Mapping[QuantType, _Layout] = {
    "F32": _Layout(0, 1, 4),
    "F16": _Layout(1, 1, 2),
    "Q8_0": _Layout(8, BLOCK, 2 + BLOCK),
}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class Integers:
    """A list of signed whole numbers, as opposed to texts."""

    values: Sequence[int]


@dataclass(frozen=True, slots=True)
class Floats:
    """A list of numbers, written as float32."""

    values: Sequence[float]


Value = bool | int | float | str | Sequence[str] | Integers | Floats
"""A value of the metadata: an int is written as uint32, a float as float32."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is made when it is written."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in NumPy."""
    kind: QuantType
    make: Callable[[], NDArray[np.float32]]
    """Returns the numbers, in float32."""

    @property
    def bytes(self) -> int:
        """The size in the file, without padding."""
        count = 1
        for axis in self.shape:
            count *= axis
        layout = _LAYOUTS[self.kind]
        # A tensor whose last axis is no whole number of blocks is never given this kind.
        return count // layout.numbers * layout.size


def write_gguf(
    path: str | os.PathLike[str], metadata: Mapping[str, Value], tensors: Sequence[Tensor]
) -> Path:
    """Write a GGUF file completely or not at all; an existing file is replaced.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    target = Path(path)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    head = _head(metadata, tensors)
    needed = len(head) + sum(_padded(tensor.bytes) for tensor in tensors)
    with atomic_write(target, needed=needed) as file:
        file.write(head)
        for tensor in tensors:
            _write_tensor(file, tensor)
    return target


def _write_tensor(file: IO[bytes], tensor: Tensor) -> None:
    content = encoded(tensor.make(), tensor.kind)
    # The offsets in the header were computed from `bytes`, so a difference would shift all
    # tensors.
    assert len(content) == tensor.bytes, tensor.name
    file.write(content)
    file.write(bytes(_padded(len(content)) - len(content)))


def encoded(numbers: NDArray[np.float32], kind: QuantType) -> bytes:
    """Return numbers as the bytes of a tensor."""
    if kind == "Q8_0":
        return _q8_0(numbers)
    return numbers.astype("<f4" if kind == "F32" else "<f2").tobytes()


def _q8_0(numbers: NDArray[np.float32]) -> bytes:
    """Return blocks of 32 numbers, each as a float16 scale and 32 whole numbers up to 127."""
    import numpy as np

    blocks = numbers.astype(np.float32).reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        # A block of zeros has the scale 0; its quotients are 0, not NaN.
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = blocks * inverse
    # Halves are rounded away from zero, as C's roundf does.
    whole = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    parts = [scale.astype("<f2").view(np.uint8), whole.view(np.uint8)]
    return np.concatenate(parts, axis=1).tobytes()


def _head(metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> bytes:
    """Return everything before the first tensor."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for name, value in metadata.items():
        parts += [_text(name), _value(value)]
    offset = 0
    for tensor in tensors:
        # GGUF lists the axes from the fastest to the slowest, the reverse of NumPy.
        axes = tensor.shape[::-1]
        parts += [_text(tensor.name), struct.pack(f"<I{len(axes)}Q", len(axes), *axes)]
        parts.append(struct.pack("<IQ", _LAYOUTS[tensor.kind].code, offset))
        offset += _padded(tensor.bytes)
    head = b"".join(parts)
    return head + bytes(_padded(len(head)) - len(head))


def _value(value: Value) -> bytes:
    # First, because a bool is also an int in Python.
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    return _array(value)


def _array(values: Sequence[str] | Integers | Floats) -> bytes:
    if isinstance(values, Integers | Floats):
        code, letter = (_INT32, "i") if isinstance(values, Integers) else (_FLOAT32, "f")
        count = len(values.values)
        return struct.pack(f"<IIQ{count}{letter}", _ARRAY, code, count, *values.values)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(values)) + b"".join(map(_text, values))


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
