"""A request is read from where an earlier one ends, and only if it goes on from that one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from orbiter.train import TrajectoryDataset, TrajectoryItem
from orbiter.train.capture import record
from orbiter.train.capture.conversation import Conversations
from orbiter.train.capture.wire import CHAT
from tests.capture.server import ModelServer

Anything = Any


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def told(*asked: tuple[str, dict[str, object]]) -> list[TrajectoryItem]:
    """Send bodies, each to its address, in one episode; return what was captured."""
    dataset = TrajectoryDataset()
    with record(dataset) as episode, httpx2.Client() as client:
        for url, body in asked:
            client.post(url, json=body).raise_for_status()
        episode.reward(1.0)
    return list(dataset)


def test_a_turn_that_was_written_anew_is_read_anew(server: ModelServer) -> None:
    to = f"{server.url}/chat/completions"
    first: Anything = {"messages": [user("One"), user("Two")], "model": "m"}
    for turns in (["One", "Six"], ["Ten", "Two"], ["Ten", "Two", "Three"], ["Two"]):
        second = first | {"messages": [user(turn) for turn in turns]}
        _, item = told((to, first), (to, second))
        assert item.messages == second["messages"]
        assert item.state == "\n\n".join(f"[user]\n{turn}" for turn in turns)


def test_settings_that_change_between_turns_are_those_of_their_turn(server: ModelServer) -> None:
    to = f"{server.url}/chat/completions"
    tool: Anything = {"type": "function", "function": {"name": "add", "parameters": {}}}
    first = {"messages": [user("One")], "model": "m", "temperature": 0.5}
    second = {"messages": [user("One"), user("Two")], "model": "m", "temperature": 0.7}
    third = {**second, "tools": [tool]}
    fourth = {"messages": [user("One")], "model": "m", "top_p": 0.7}
    items = told((to, first), (to, second), (to, third), (to, fourth))
    assert [item.metadata["params"] for item in items] == [
        {"model": "m", "temperature": 0.5},
        {"model": "m", "temperature": 0.7},
        {"model": "m", "temperature": 0.7},
        {"model": "m", "top_p": 0.7},
    ]
    assert [item.tools is None for item in items] == [True, True, False, True]


def test_the_same_bytes_to_another_api_are_read_as_its_own(server: ModelServer) -> None:
    first: Anything = {"messages": [user("One")], "model": "m"}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "5"}
    second = first | {"messages": [user("One"), user([result])]}
    _, item = told((f"{server.url}/chat/completions", first), (f"{server.url}/messages", second))
    assert item.metadata["api"] == "messages"
    assert item.messages == [
        user("One"),
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]


def test_of_several_lines_of_talk_the_longest_is_gone_on_from() -> None:
    talks = Conversations()

    def new_in(*turns: str) -> int:
        body = {"messages": [user(turn) for turn in turns], "model": "m"}
        asked = talks.follow(CHAT, json.dumps(body).encode())
        talks.read(asked, None)
        return len(asked.new)

    assert new_in("1", "2", "3") == 3
    assert new_in("1") == 1
    assert new_in("1", "2", "3", "4") == 1
    assert new_in("1", "5") == 1
