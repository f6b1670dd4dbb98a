"""One step of an agent: the record that everything else speaks.

An item can be wrong only at its making: what a file could not hold (a reward that is no finite
number, text that is no Unicode, metadata that is no JSON) is refused here, where it is easy to
find. Left out: where items are kept (`dataset.py`) and what files look like (`files.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from orbiter.train.errors import DataError
from orbiter.train.trajectory import fields


@dataclass(frozen=True, slots=True)
class TrajectoryItem:
    """One step an agent took: what it saw, what it did, what that was worth.

    Lists are copied, so that a conversation may go on growing; the dicts inside them, and
    `metadata`, are kept as given.

    Raises:
        DataError: a field's value cannot be kept; the message names the field and the value.
    """

    state: str
    """What the agent saw: the text that the policy is conditioned on."""
    action: str
    """What it did: the text that the policy learns to make more or less likely."""
    reward: float | None = None
    """What that was worth. Finite, higher is better; None until it is known. True counts as 1.0."""
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    """Whatever else is known, as JSON can hold it; `lineage` tells where a derived item is from."""
    task_id: str | None = field(default=None, kw_only=True)
    """The task worked on: attempts at one task share it, and a split keeps them together."""
    episode_id: str | None = field(default=None, kw_only=True)
    """The attempt that this step belongs to."""
    step: int | None = field(default=None, kw_only=True)
    """Place within the episode."""
    agent: str | None = field(default=None, kw_only=True)
    """Which agent acted, where there are several."""
    messages: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    """The chat behind `state`, in OpenAI's form."""
    tools: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    """The tools on offer, as JSON schemas."""
    tool_calls: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    """The calls within `action`, in OpenAI's form."""
    done: bool | None = field(default=None, kw_only=True)
    """Whether the episode ended with this step."""
    timestamp: float | None = field(default=None, kw_only=True)
    """When, in seconds since 1970 (UTC)."""
    prompt_token_ids: Sequence[int] | None = field(default=None, kw_only=True)
    """The very tokens that the server read."""
    token_ids: Sequence[int] | None = field(default=None, kw_only=True)
    """The very tokens that the server sampled."""
    logprobs: Sequence[float] | None = field(default=None, kw_only=True)
    """Log-probability of each of `token_ids`, in nats."""

    def __post_init__(self) -> None:
        if type(self.state) is not str or not self.state.isascii():
            object.__setattr__(self, "state", fields.text("state", self.state))
        if type(self.action) is not str or not self.action.isascii():
            object.__setattr__(self, "action", fields.text("action", self.action))
        reward = self.reward
        if reward is not None and not (type(reward) is float and math.isfinite(reward)):
            object.__setattr__(self, "reward", fields.number("reward", reward))
        if self.metadata or type(self.metadata) is not dict:
            fields.json_object("metadata", self.metadata)
        given = _optional_values(self)
        if given != _ALL_ABSENT:
            self._check_optional(given)

    def _check_optional(self, given: tuple[object, ...]) -> None:
        for (name, check), value in zip(OPTIONAL.items(), given, strict=True):
            if value is not None:
                object.__setattr__(self, name, check(name, value))
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids or ()):
            raise DataError(
                f"logprobs must have one number for each of token_ids, got {len(self.logprobs)} "
                f"for {len(self.token_ids or ())}"
            )

    def __hash__(self) -> int:
        return hash((self.state, self.action, self.reward))

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name, as files hold them; optional ones that are None stay out."""
        pairs = zip(NAMES, values_of(self), strict=True)
        return {name: value for name, value in pairs if value is not None or name == "reward"}

    @property
    def id(self) -> str:
        """Name of the content: the same in every process and after every file, 32 hex digits.

        Covers every field, so an item that was given a reward has another id than before.
        """
        return hashlib.blake2b(fields.encode_sorted(self.to_dict()), digest_size=16).hexdigest()


OPTIONAL: Mapping[str, Callable[[str, object], object]] = {
    "task_id": fields.text,
    "episode_id": fields.text,
    "step": fields.whole,
    "agent": fields.text,
    "messages": fields.json_objects,
    "tools": fields.json_objects,
    "tool_calls": fields.json_objects,
    "done": fields.flag,
    "timestamp": fields.number,
    "prompt_token_ids": fields.token_ids,
    "token_ids": fields.token_ids,
    "logprobs": fields.numbers,
}
"""The fields that need not be there, each with its check."""

NAMES = ("state", "action", "reward", "metadata", *OPTIONAL)
"""All fields, in order."""

Values = tuple[Any, ...]
"""The values of all fields, in the order of `NAMES`."""

values_of: Callable[[TrajectoryItem], Values] = attrgetter(*NAMES)
"""Return an item's fields as a tuple."""


def from_values(values: Values) -> TrajectoryItem:
    """Make an item of values known to be fine: they came out of an item, or were decoded."""
    item = object.__new__(TrajectoryItem)
    for put, value in zip(_SETTERS, values, strict=True):
        put(item, value)
    return item


_SETTERS = [getattr(TrajectoryItem, name).__set__ for name in NAMES]
_optional_values: Callable[[TrajectoryItem], Values] = attrgetter(*OPTIONAL)
_ALL_ABSENT = (None,) * len(OPTIONAL)
