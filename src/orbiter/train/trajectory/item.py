"""One step of an agent: the record that everything else speaks.

An item can be wrong only at its making: what a file could not hold (a reward that is no finite
number, text that is no Unicode, metadata that is no JSON) is refused here, where it is easy to
find. Left out: where items are kept (`dataset.py`) and what files look like (`files.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from operator import attrgetter
from types import MappingProxyType
from typing import Any, cast

from orbiter.train.errors import DataError
from orbiter.train.trajectory import fields

_NOTHING: Mapping[str, object] = MappingProxyType({})
"""Stands for metadata that was not given: each item has a dict of its own."""


@dataclass(frozen=True, slots=True, init=False)
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

    def __init__(
        self,
        state: str,
        action: str,
        reward: float | None = None,
        metadata: Mapping[str, object] = _NOTHING,
        *,
        task_id: str | None = None,
        episode_id: str | None = None,
        step: int | None = None,
        agent: str | None = None,
        messages: Sequence[Mapping[str, object]] | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_calls: Sequence[Mapping[str, object]] | None = None,
        done: bool | None = None,
        timestamp: float | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        token_ids: Sequence[int] | None = None,
        logprobs: Sequence[float] | None = None,
    ) -> None:
        """Make an item; the fields say what each argument means."""
        if type(state) is not str or not state.isascii():
            state = fields.text("state", state)
        if type(action) is not str or not action.isascii():
            action = fields.text("action", action)
        if reward is not None and not (type(reward) is float and isfinite(reward)):
            reward = fields.number("reward", reward)
        if metadata is _NOTHING:
            metadata = {}
        elif metadata or type(metadata) is not dict:
            metadata = fields.json_object("metadata", metadata)
        # Sixteen times object.__setattr__ takes three times as long as all that follows here: until
        # it is whole, the item is of a class with the same slots that may be written to.
        kind = type(self)
        _set(self, "__class__", _Draft if kind is TrajectoryItem else _draft_of(kind))
        item: Any = self
        item.state, item.action, item.reward = state, action, reward
        item.metadata = metadata
        item.task_id, item.episode_id, item.step, item.agent = task_id, episode_id, step, agent
        item.messages, item.tools, item.tool_calls = messages, tools, tool_calls
        item.done, item.timestamp = done, timestamp
        item.prompt_token_ids, item.token_ids, item.logprobs = prompt_token_ids, token_ids, logprobs
        item.__class__ = kind
        if not (
            task_id is None and episode_id is None and step is None and agent is None
            and messages is None and tools is None and tool_calls is None and done is None
            and timestamp is None and prompt_token_ids is None and token_ids is None
            and logprobs is None
        ):  # fmt: skip
            _check_optional(item)

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
    item: Any = _new(_Draft)
    (
        item.state, item.action, item.reward, item.metadata, item.task_id, item.episode_id,
        item.step, item.agent, item.messages, item.tools, item.tool_calls, item.done,
        item.timestamp, item.prompt_token_ids, item.token_ids, item.logprobs,
    ) = values  # fmt: skip
    item.__class__ = TrajectoryItem
    return cast("TrajectoryItem", item)


class _Draft:
    """An item under construction."""

    __slots__ = NAMES


_DRAFTS: dict[type, type] = {}
_set = object.__setattr__
_new = object.__new__


def _draft_of(kind: type) -> type:
    """Return the class that an item of a subclass is of while it is made: one that can be set."""
    if kind not in _DRAFTS:
        _DRAFTS[kind] = type(kind.__name__, (kind,), {"__slots__": (), "__setattr__": _set})
    return _DRAFTS[kind]


def _check_optional(item: TrajectoryItem) -> None:
    for (name, check), value in zip(OPTIONAL.items(), _optional_values(item), strict=True):
        if value is not None:
            _set(item, name, check(name, value))
    if item.logprobs is not None and len(item.logprobs) != len(item.token_ids or ()):
        raise DataError(
            f"logprobs must have one number for each of token_ids, got {len(item.logprobs)} "
            f"for {len(item.token_ids or ())}"
        )


_optional_values: Callable[[TrajectoryItem], Values] = attrgetter(*OPTIONAL)
