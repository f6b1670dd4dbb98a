"""One step of an agent: the record that all other modules exchange.

An item is validated once, when it is made: anything that a file could not store (a reward that is
not finite, text that is not valid Unicode, metadata that is not JSON) is refused here, where the
cause is easy to find. Not here: storing items (`dataset.py`) and the file formats (`files.py`).
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
from orbiter.train.json_files import fields

_NOTHING: Mapping[str, object] = MappingProxyType({})
"""Marks metadata that was not given; each item then gets its own empty dict."""


@dataclass(frozen=True, slots=True, init=False)
class TrajectoryItem:
    """One step of an agent: what it saw, what it did, and the reward.

    Lists are copied, so the caller may keep appending to its conversation; the dicts inside them,
    and `metadata`, are not copied.

    Raises:
        DataError: a field's value cannot be stored; the message names the field and the value.
    """

    state: str
    """What the agent saw: the text that the policy is conditioned on."""
    action: str
    """What the agent did: the text that the policy learns to make more or less likely."""
    reward: float | None = None
    """The reward: finite, higher is better, None until it is known. True counts as 1.0."""
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    """Anything else, as JSON; for a derived item, `lineage` says what it was made from."""
    task_id: str | None = field(default=None, kw_only=True)
    """The task: all attempts at it share this id, and a split keeps them in one part."""
    episode_id: str | None = field(default=None, kw_only=True)
    """The attempt that this step belongs to."""
    step: int | None = field(default=None, kw_only=True)
    """The position of this step within the episode."""
    agent: str | None = field(default=None, kw_only=True)
    """Which agent acted, where there are several."""
    messages: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    """The chat that `state` was rendered from, in OpenAI's format."""
    tools: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    """The tools that the agent could call, as JSON schemas."""
    tool_calls: Sequence[Mapping[str, object]] | None = field(default=None, kw_only=True)
    """The tool calls in `action`, in OpenAI's format."""
    done: bool | None = field(default=None, kw_only=True)
    """Whether the episode ended with this step."""
    timestamp: float | None = field(default=None, kw_only=True)
    """The time of the step, in seconds since 1970 (UTC)."""
    prompt_token_ids: Sequence[int] | None = field(default=None, kw_only=True)
    """The exact prompt tokens that the server read."""
    token_ids: Sequence[int] | None = field(default=None, kw_only=True)
    """The exact tokens that the server sampled."""
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
        # Calling object.__setattr__ for sixteen fields takes three times as long as the code below,
        # so the item temporarily has a class with the same slots whose attributes can be assigned.
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
        """Return the fields by name, as files store them, without optional fields that are None."""
        pairs = zip(NAMES, values_of(self), strict=True)
        return {name: value for name, value in pairs if value is not None or name == "reward"}

    @property
    def id(self) -> str:
        """A hash of the content, 32 hex digits: the same in every process and after a round trip.

        It covers every field, so the id changes when an item is given a reward.
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
"""The optional fields, each with its validator."""

NAMES = ("state", "action", "reward", "metadata", *OPTIONAL)
"""All fields, in order."""

Values = tuple[Any, ...]
"""The values of all fields, in the order of `NAMES`."""

values_of: Callable[[TrajectoryItem], Values] = attrgetter(*NAMES)
"""Return an item's fields as a tuple."""


def from_values(values: Values) -> TrajectoryItem:
    """Make an item without validation, from values of another item or from a checked decoder."""
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
    """Return a writable subclass of `kind`, used as the item's class while it is being built."""
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
