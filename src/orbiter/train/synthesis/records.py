"""One view of the rows to curate: a `TrajectoryDataset`, a list of items, or plain mappings.

A mapping has the keys `state`, `action` and `reward`, or `input`, `output` and `score`. The result
is of the same kind as the data, and no row is ever changed: a derived row is a new one that names
its parent. Not here: all other forms of rows, which `formats` reads and writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Generic, NamedTuple, TypeAlias, TypeVar, cast

from orbiter.train.chat.message import REASONING
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

Row: TypeAlias = TrajectoryItem | Mapping[str, object]
"""One example: an item, or a mapping in one of the two forms."""

Data: TypeAlias = TrajectoryDataset | Sequence[TrajectoryItem] | Sequence[Mapping[str, object]]
"""Many examples, in any of the three kinds."""

D = TypeVar("D", bound=Data)
"""The kind of the data: a curation function returns the kind that it is given."""


class Form(NamedTuple):
    """The keys of a mapping for the three parts of every row."""

    state: str
    action: str
    reward: str


SAR = Form("state", "action", "reward")
IO = Form("input", "output", "score")

_STALE_WITH_STATE = ("messages", "prompt_token_ids", "logprobs")
"""Fields of a row that are dropped when its state changes; below, with its step or action."""
_STALE_WITH_STEP = ("episode_id", "step", "done", "timestamp")
_RECORDED = frozenset({"response_id", "evaluations", "other_answers", "tool_runs", "score_reason"})
"""Entries of the metadata that describe one recorded answer."""
_STALE_WITH_ACTION = ("messages", "tool_calls", "token_ids", "logprobs")


def form_of(row: Mapping[str, object]) -> Form:
    """Return the names that a mapping uses.

    Raises:
        DataError: the mapping has neither `state` nor `input`.
    """
    if SAR.state in row:
        return SAR
    if IO.state in row:
        return IO
    raise DataError(
        f"a mapping needs the key 'state' (with 'action', 'reward') or 'input' (with 'output', "
        f"'score'); this one has {sorted(map(str, row))}"
    )


def state_of(row: Row) -> str:
    """Return the state: the item's, or the mapping's `state` or `input`."""
    if isinstance(row, TrajectoryItem):
        return row.state
    name = form_of(row).state
    return _text(row[name], name)


def action_of(row: Row) -> str:
    """Return the action: the item's, or the mapping's `action` or `output`; "" if missing."""
    if isinstance(row, TrajectoryItem):
        return row.action
    name = form_of(row).action
    return _text(row.get(name, ""), name)


def score_of(row: Row) -> float | None:
    """Return the `reward` or `score`; None if the row has not been scored yet."""
    if isinstance(row, TrajectoryItem):
        return row.reward
    name = form_of(row).reward
    # Mixed keys occur, such as "input" with "reward".
    if name not in row:
        name = SAR.reward if name == IO.reward else IO.reward
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DataError(f"{name!r} must be a number or None, got {value!r}")
    return float(value)


def metadata_of(row: Row) -> Mapping[str, object]:
    """Return the row's metadata, which may be empty."""
    if isinstance(row, TrajectoryItem):
        return row.metadata
    value = row.get("metadata")
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def value_of(row: Row, name: str) -> object:
    """Return a field by name: the row's own, under either form's name, or else its metadata's."""
    if isinstance(row, TrajectoryItem):
        # Under either form's names, so that "score" works for items as "reward" does.
        own = getattr(row, _ITEM_FIELDS[name]) if name in _ITEM_FIELDS else None
        return row.metadata.get(name) if own is None else own
    form = form_of(row)
    own = row.get(form[(SAR if name in SAR else IO).index(name)] if name in SAR + IO else name)
    return metadata_of(row).get(name) if own is None else own


def id_of(row: Row) -> str:
    """Return a stable name for the row, made from its content alone."""
    if isinstance(row, TrajectoryItem):
        return row.id
    # Sorted, because two rows with the same content have the same name whatever their keys' order.
    content = json.dumps(row, sort_keys=True, default=repr)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Lineage(NamedTuple):
    """Where a derived row comes from."""

    parent: str
    root: str
    op: str
    seed: int


def lineage_of(row: Row) -> Mapping[str, object]:
    """Return the lineage in the row's metadata; an original has none."""
    value = metadata_of(row).get("lineage")
    if value is None:  # the fast path: true for most rows
        return {}
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def derive(
    row: Row, changes: Mapping[str, object], *, op: str, seed: int, same_step: bool = False
) -> Row:
    """Make a new row of the same kind from `row`, with `changes` and its lineage.

    `changes` uses the names `state`, `action` and `reward`, whatever keys the row has. Data
    recorded for the old texts is dropped: chat messages, token ids, log-probabilities, tool calls,
    and in the metadata the response id, its evaluations and its reasoning. Unless the new row is a
    rewording of the same step (`same_step`), it belongs to no episode, and if its state differs to
    no task.
    """
    parent = id_of(row)
    # A derived row keeps its parent's root, so that a split keeps all generations together.
    root = lineage_of(row).get("root", parent)
    lineage = Lineage(parent, str(root), op, seed)._asdict()
    recorded = {name: value for name, value in metadata_of(row).items() if name not in _RECORDED}
    if "action" in changes:
        # It led to the old action.
        recorded.pop(REASONING, None)
    metadata = {**recorded, "lineage": lineage}
    stale = (_STALE_WITH_STATE if "state" in changes else ()) + (
        _STALE_WITH_ACTION if "action" in changes else ()
    )
    if not same_step:
        stale += _STALE_WITH_STEP + (("task_id",) if "state" in changes else ())
    if isinstance(row, TrajectoryItem):
        # The changes last: a caller that gives new messages with a new state means to keep them.
        fresh = {**dict.fromkeys(stale), **changes, "metadata": metadata}
        return dataclasses.replace(row, **fresh)  # type: ignore[arg-type]  # names checked by replace
    form = form_of(row)
    kept = {name: value for name, value in row.items() if name not in stale}
    named = {
        form[SAR.index(name)] if name in SAR else name: value for name, value in changes.items()
    }
    return {**kept, **named, "metadata": metadata}


@dataclass(frozen=True, slots=True)
class Records(Generic[D]):
    """The rows of a data set, with a way to build a result of the same kind."""

    data: D
    """The data that the caller passed; never changed."""
    rows: Sequence[Row]
    """Its rows, in its order; a data set's items that wait for a reward come last."""

    @classmethod
    def of(cls, data: D) -> Records[D]:
        """Return a view of `data` after checking every row.

        Raises:
            DataError: the data or a row is of an unknown kind; the message names the row's index.
        """
        if not isinstance(data, TrajectoryDataset | list | tuple):
            raise DataError(
                "data must be a TrajectoryDataset, a list of TrajectoryItem or a list of mappings, "
                f"got {type(data).__name__}"
            )
        rows: Sequence[Row] = (
            [*data.items, *data.waiting] if isinstance(data, TrajectoryDataset) else data
        )
        for index, row in enumerate(rows):
            if not isinstance(row, TrajectoryItem):
                _check(row, index)
        return cls(data, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def states(self) -> list[str]:
        """Return every row's state, in order."""
        return [r.state if isinstance(r, TrajectoryItem) else state_of(r) for r in self.rows]

    def actions(self) -> list[str]:
        """Return every row's action, in order."""
        return [r.action if isinstance(r, TrajectoryItem) else action_of(r) for r in self.rows]

    def scores(self) -> list[float | None]:
        """Return every row's reward or score, in order; None where it has none."""
        return [r.reward if isinstance(r, TrajectoryItem) else score_of(r) for r in self.rows]

    def take(self, indices: Iterable[int]) -> D:
        """Return the rows at `indices` as data of the original kind."""
        return self.rebuild([self.rows[index] for index in indices])

    def rebuild(self, rows: Iterable[Row]) -> D:
        """Return `rows` as data of the original kind: a new data set in memory, or a list.

        In a data set, a row without a reward waits for one: see its `waiting`.
        """
        if isinstance(self.data, TrajectoryDataset):
            fresh = TrajectoryDataset()
            # In memory: the result is a new data set, not a change of the file behind the old one.
            fresh.extend(cast("Iterable[TrajectoryItem]", rows))
            return cast("D", fresh)
        return cast("D", tuple(rows) if isinstance(self.data, tuple) else list(rows))


def _check(row: object, index: int) -> None:
    if not isinstance(row, Mapping):
        raise DataError(
            f"row {index} must be a TrajectoryItem or a mapping, got {type(row).__name__}"
        )
    try:
        state_of(row)
        action_of(row)
        score_of(row)
    except DataError as error:
        raise DataError(f"row {index}: {error}") from None


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name!r} must be text, got {type(value).__name__} {value!r:.60}")
    return value


_ITEM_FIELDS = {field.name: field.name for field in dataclasses.fields(TrajectoryItem)} | dict(
    zip(IO, SAR, strict=True)
)
