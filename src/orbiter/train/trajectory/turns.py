"""Stores the turns of an episode without repeating their common prefixes.

The state of turn n + 1 usually starts with the state of turn n, and so do its messages, its tools
and its prompt tokens. A `Shortened` item records the length of each prefix that it shares with an
earlier stored item and holds only the rest: 50 turns then cost their new text, not 50 growing
prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import NamedTuple

from orbiter.train.json_files import fields
from orbiter.train.trajectory.item import NAMES, TrajectoryItem, Values, from_values

SHARED = tuple(
    NAMES.index(name)
    for name in (
        "state",
        "action",
        "messages",
        "tools",
        "tool_calls",
        "prompt_token_ids",
        "token_ids",
        "logprobs",
    )
)
"""Indices in `item.NAMES` of the fields that may share a prefix with the previous turn."""

WORTH_SHARING = 64
"""The shortest common text, in characters, that is worth sharing."""


class Shortened(NamedTuple):
    """An item whose shared fields are stored without their common prefix."""

    tail: Values
    """All fields; of a shared field only the part after the common prefix."""
    cut: tuple[int, ...]
    """For each of `SHARED`, the length of the common prefix."""
    previous: Stored
    """The stored item that has the common prefixes."""


Stored = Values | Shortened
"""An item in memory: a plain tuple of its values, or a `Shortened`.

Not the item itself: the garbage collector visits every object again and again, but stops tracking
a tuple of texts and numbers after its first visit. For the same reason, metadata of plain values
is stored as a flat tuple: all names, then all values.
"""

ATOMS = frozenset((str, int, float, bool, type(None)))
"""The types of values that contain no other values."""
_METADATA = NAMES.index("metadata")


def shorten(item: TrajectoryItem, previous: Stored, whole: Values | None = None) -> Stored:
    """Return `item` without the prefixes it shares with `previous`; unchanged if they are short.

    `whole` is `previous` in full, if the caller still has it.
    """
    values, before = packed(item), whole or _values(previous)
    # Compared with the whole previous turn, stored as lengths into the chain of turns.
    cut, tail = [0] * len(SHARED), list(values)
    for index, position in enumerate(SHARED):
        was, now = before[position], values[position]
        if was and now:
            cut[index] = length = _common_length(was, now)
            tail[position] = now[length:] if length else now
    return Shortened(tuple(tail), tuple(cut), previous) if any(cut) else values


def packed(item: TrajectoryItem) -> Values:
    """Return the values of an item as they are stored in memory."""
    metadata: object = item.metadata
    if type(metadata) is dict and ATOMS.issuperset(map(type, metadata.values())):
        metadata = (*metadata, *metadata.values())
    return (
        item.state, item.action, item.reward, metadata, item.task_id, item.episode_id, item.step,
        item.agent, item.messages, item.tools, item.tool_calls, item.done, item.timestamp,
        item.prompt_token_ids, item.token_ids, item.logprobs,
    )  # fmt: skip


def unpacked(values: Values) -> Values:
    """Undo `packed`."""
    flat = values[_METADATA]
    if type(flat) is tuple:
        half = len(flat) // 2
        metadata = dict(zip(flat[:half], flat[half:], strict=True))
        return (*values[:_METADATA], metadata, *values[_METADATA + 1 :])
    return values


def restore(stored: Stored) -> TrajectoryItem:
    """Return the whole item."""
    return from_values(unpacked(_values(stored)))


def _values(stored: Stored) -> Values:
    if not isinstance(stored, Shortened):
        return stored
    values = list(stored.tail)
    for index, position in enumerate(SHARED):
        if stored.cut[index]:
            values[position] = _whole(stored, index, position)
    return tuple(values)


def _whole(stored: Stored, index: int, field: int) -> object:
    """Rebuild a field by collecting its pieces from the last turn back to the first."""
    pieces: list[Sequence[object]] = []
    needed = None
    while isinstance(stored, Shortened):
        start = stored.cut[index]
        if needed is None or needed > start:
            tail = stored.tail[field]
            pieces.append(tail if needed is None else tail[: needed - start])
            needed = start
        if needed == 0:
            break
        stored = stored.previous
    else:
        pieces.append(stored[field][:needed])
    pieces.reverse()
    if isinstance(pieces[0], str):
        return "".join(pieces)  # type: ignore[arg-type]  # a field's pieces are of one type
    return list(chain.from_iterable(pieces))


def _common_length(before: object, now: object) -> int:
    if isinstance(before, str) and isinstance(now, str):
        length = _common_text(before, now)
        return length if length >= WORTH_SHARING else 0
    if isinstance(before, list) and isinstance(now, list):
        return _common_elements(before, now)
    return 0


def _common_text(before: str, now: str) -> int:
    # The usual case first: a conversation only grows.
    if now.startswith(before):
        return len(before)
    # Binary search over slices: comparing two slices runs in C, comparing characters does not.
    low, high = 0, min(len(before), len(now))
    if before[:WORTH_SHARING] != now[:WORTH_SHARING]:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if before[low:middle] == now[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_elements(before: list[object], now: list[object]) -> int:
    # Messages of the same conversation are usually the same objects.
    if all(map(is_, before, now)):
        return min(len(before), len(now))
    # Token ids: a list of ints can be compared as a whole.
    if type(now[0]) is int and now[: len(before)] == before:
        return len(before)
    length = 0
    for old, new in zip(before, now, strict=False):
        if old is not new and not _same(old, new):
            break
        length += 1
    return length


def _same(old: object, new: object) -> bool:
    # 1, True and 1.0 are equal in Python but differ in a file.
    return old == new and fields.encode(old) == fields.encode(new)
