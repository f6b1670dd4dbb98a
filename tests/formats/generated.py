"""Chats as Hypothesis makes them, and the items of their answers: what a chat format must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from orbiter.train.chat.conversation import items_of
from orbiter.train.trajectory import TrajectoryItem

texts = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\n", "<think>\n\n</think>\n\n", "<think>\na\n</think>\n\nb", "[]", "{}", "null", "0"]
)
filled = texts.filter(bool)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(texts, json_values, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False)
) | st.sampled_from(['{"a": ', "", "[1]", "not json"])
parts = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts})
    | st.just({"type": "image_url", "image_url": {"url": "data:,"}}),
    min_size=1,
    max_size=2,
)
tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": filled, "parameters": st.dictionaries(filled, json_values, max_size=2)}
            ),
        }
    ),
    min_size=1,
    max_size=2,
)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    function = {"name": draw(filled), "arguments": draw(arguments)}
    return {"id": draw(filled), "type": "function", "function": function}


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    role = draw(st.sampled_from(["system", "user", "assistant", "assistant", "tool", "developer"]))
    message: dict[str, Any] = {"role": role, "content": draw(texts | parts)}
    if role == "assistant" and draw(st.booleans()):
        message["tool_calls"] = draw(st.lists(calls(), min_size=1, max_size=2))
        message["content"] = draw(st.none() | filled)
    if role == "assistant" and draw(st.booleans()):
        message["reasoning_content"] = draw(filled)
    if role == "tool" and draw(st.booleans()):
        message["tool_call_id"] = draw(filled)
    if draw(st.integers(0, 4)) == 0:
        message["name"] = draw(filled)
    return message


@st.composite
def chats(draw: st.DrawFn) -> list[TrajectoryItem]:
    """The items of one chat, of whose answers some are only read."""
    chat = draw(st.lists(messages(), min_size=1, max_size=6))
    answers = draw(st.sets(st.integers(0, 5)))
    episode = draw(st.uuids()).hex
    return list(items_of(chat, tools=draw(st.none() | tools), answers=answers, episode_id=episode))


@st.composite
def plain(draw: st.DrawFn) -> list[TrajectoryItem]:
    """A state and an action that nobody made a chat of."""
    return [TrajectoryItem(draw(texts), draw(texts))]


several_chats = st.lists(chats() | plain(), min_size=1, max_size=4).map(
    lambda groups: [item for group in groups for item in group]
)


@st.composite
def rivals(draw: st.DrawFn) -> list[TrajectoryItem]:
    """Two different answers to one prompt, the better first."""
    prompt = draw(st.lists(messages(), min_size=1, max_size=4))
    answers = draw(st.lists(messages(), min_size=2, max_size=2, unique_by=repr))
    low, high = sorted(draw(st.sets(numbers.map(float), min_size=2, max_size=2)))
    found = []
    for answer, reward in zip(answers, (high, low), strict=True):
        said = {**answer, "role": "assistant"}
        said.pop("tool_call_id", None)
        said["content"] = said.get("content") or ("said" if "tool_calls" not in said else None)
        (item,) = items_of([*prompt, said], answers={len(prompt)}, tools=None)
        found.append(TrajectoryItem(**{**item.to_dict(), "reward": reward}))  # type: ignore[arg-type]
    return found


def tidy(value: object) -> object:
    """Drop what is unset, since null, absent and empty say the same in a message."""
    if isinstance(value, Mapping):
        kept = {key: tidy(inner) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner not in (None, "", [], {})}
    if isinstance(value, list):
        return [tidy(inner) for inner in value]
    return value


def told(item: TrajectoryItem, fields: Sequence[str]) -> dict[str, object]:
    """What an item says in some of its fields; `metadata.x` is one entry."""
    found: dict[str, object] = {}
    for name in fields:
        field, _, entry = name.partition(".")
        value = getattr(item, field)
        found[name] = tidy(value.get(entry) if entry else value)
    return found
