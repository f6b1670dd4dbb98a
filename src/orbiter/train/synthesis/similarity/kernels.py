"""Defines how loops are compiled, and the types of the arrays that they share.

Numba compiles these plain functions at their first call and keeps the machine code on disk. The
loops are in `hashing` (texts to sets of tokens) and `probing` (joining the sets).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Uint64s: TypeAlias = NDArray[np.uint64]
Int64s: TypeAlias = NDArray[np.int64]
Int32s: TypeAlias = NDArray[np.int32]
F = TypeVar("F", bound=Callable[..., Any])

ODD = np.uint64(0x9E3779B97F4A7C15)
"""A multiplier that spreads bits: 2^64 over the golden ratio."""
ONES = np.uint64(0x0101010101010101)
"""The value 1 in every byte."""


def compiled(function: F) -> F:
    """Compile `function`, keeping the machine code on disk where any folder can be written."""
    try:
        return cast("F", numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return cast("F", numba.njit(nogil=True)(function))


def inlined(function: F) -> F:
    """Compile `function` into its callers."""
    return cast("F", numba.njit(inline="always")(function))


@inlined
def signed(number: int | np.generic) -> int:
    """Make a signed 64-bit number: mixing it with unsigned numbers would give floats."""
    return np.int64(number)  # type: ignore[return-value]  # an int to the compiled code


class Sets(NamedTuple):
    """Many sets of tokens in flat arrays."""

    tokens: Uint64s
    """A token is a rank of 8 bits, rarest lowest, over a hash of 56; a set's tokens ascend."""
    start: Int64s
    size: Int32s
    bitmap: Uint64s
    """Parity of the set's tokens over 64 classes."""
