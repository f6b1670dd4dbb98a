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
        kept = numba.njit(cache=True, nogil=True)(function)
        _forget_what_cannot_be_read(kept)
    except (RuntimeError, OSError):  # neither the package's nor the user's cache can be written
        return cast("F", numba.njit(nogil=True)(function))
    return cast("F", kept)


def _forget_what_cannot_be_read(kept: Any) -> None:  # noqa: ANN401 - numba has no types
    """Empty the function's cache on disk if an earlier version of its file makes it unreadable.

    numba 0.68 unpickles a whole index before it looks which version of the file it is for. So a
    class in a signature that was renamed since, as by an upgrade, would end every call.
    """
    index = getattr(getattr(kept, "_cache", None), "_cache_file", None)
    if index is None:  # another version of numba
        return
    try:
        index._load_index()
    except OSError:
        raise
    except Exception:  # whatever pickle raises for names that are gone and for damaged files
        index.flush()


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
