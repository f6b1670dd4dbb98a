"""Keys and headers are never kept; what `redact` says is taken out before anything is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from orbiter.train import CallbackError, ConfigError, TrajectoryDataset
from orbiter.train.capture import record
from orbiter.train.errors import DataError
from tests.capture.server import ModelServer

Anything = Any
KEY = "sk-very-secret-0123456789"


def talk(server: ModelServer, *texts: str, **more: Anything) -> None:
    messages: Any = []
    with openai.OpenAI(
        base_url=server.url, api_key=KEY, default_headers={"x-private": "header-value"}
    ) as client:
        for text in texts:
            messages.append({"role": "user", "content": text})
            answer = client.chat.completions.create(model="m", messages=messages, **more)
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})


def test_the_key_and_the_headers_never_reach_the_disk(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with ModelServer(reply=lambda _: f"your key is {KEY}", token_ids=True) as server:
        dataset = TrajectoryDataset(path=journal)
        with record(dataset) as episode:
            talk(server, f"my key is {KEY}", "again", extra_body={"api_key": KEY, "seed": 3})
            episode.reward(1.0)
        dataset.close()
    written = journal.read_bytes()
    assert b"secret" not in written
    assert b"header-value" not in written
    assert dataset[0].metadata["params"] == {"model": "m", "seed": 3}
    assert dataset[0].action == "your key is [redacted]"
    assert dataset[0].metadata["redacted"] is True
    assert [(item.prompt_token_ids, item.token_ids) for item in dataset] == [(None, None)] * 2


def test_patterns_are_taken_out_of_every_text_and_the_rest_keeps_its_ids(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with ModelServer(token_ids=True) as server:
        dataset = TrajectoryDataset(path=journal)
        with record(dataset, redact=[r"\d{4}-\d{4}", re.compile("(?i)ada")]) as episode:
            talk(server, "Hello")
            talk(server, "I am ADA, card 1234-5678")
            episode.add("Ada", "1111-2222", metadata={"who": ["ada"]})
            episode.reward(1.0)
        dataset.close()
    assert re.search(rb"(?i)\bada\b|1234-5678|1111", journal.read_bytes()) is None
    clean, redacted, added = dataset
    assert clean.token_ids is not None
    assert redacted.prompt_token_ids is None
    assert redacted.state == "[user]\nI am [redacted], card [redacted]"
    assert (added.state, added.metadata["who"]) == ("[redacted]", ["[redacted]"])


def test_tools_calls_settings_and_failures_are_cleaned_too() -> None:
    function = {"name": "add", "description": "For Ada.", "parameters": {"type": "object"}}
    with ModelServer(plan=lambda n: "answer" if n else "status_500", token_ids=True) as server:
        dataset = TrajectoryDataset()
        with record(dataset, redact=["Ada", r'"b": 3', "try again"]) as episode:
            tools = [{"type": "function", "function": function}]
            talk(server, "Hello", tools=tools, logprobs=True, user="Ada Lovelace")
            episode.reward(1.0)
    (item,) = dataset
    assert not re.search(r'Ada|"b\W+3|try again', str(item.to_dict()))
    assert item.tools is not None
    assert "[redacted]" in str(item.tools)
    assert "[redacted]" in str(item.tool_calls)
    assert "[redacted]" in str(item.metadata["failed_attempts"])
    params: Any = item.metadata["params"]
    assert params["user"] == "[redacted] Lovelace"
    assert (item.prompt_token_ids, item.token_ids, item.logprobs) == (None, None, None)


def test_a_tool_that_names_a_secret_costs_the_prompt_its_ids() -> None:
    function = {"name": "add", "description": "For Ada.", "parameters": {}}
    with ModelServer(token_ids=True) as server:
        dataset = TrajectoryDataset()
        with record(dataset, redact=["Ada"]) as episode:
            talk(server, "Hello", tools=[{"type": "function", "function": function}])
            talk(server, "Bye", user="Ada")
            episode.reward(1.0)
    named, plain = dataset
    assert named.metadata["redacted"] is True
    assert named.prompt_token_ids is None
    assert plain.prompt_token_ids is not None
    assert named.token_ids


def test_what_was_taken_out_of_a_turn_costs_the_later_ones_their_prompts_ids() -> None:
    with ModelServer(token_ids=True) as server:
        dataset = TrajectoryDataset()
        with record(dataset, redact=["Ada"]) as episode:
            talk(server, "I am Ada", "again")
            episode.reward(1.0)
    assert [item.metadata["redacted"] for item in dataset] == [True, True]
    assert [item.prompt_token_ids for item in dataset] == [None, None]
    assert all(item.token_ids for item in dataset)


def test_a_function_may_redact_and_one_that_fails_keeps_nothing() -> None:
    def broken(_text: str) -> str:
        raise ValueError("no")

    with ModelServer() as server:
        dataset = TrajectoryDataset()
        with record(dataset, redact=str.upper) as episode:
            talk(server, "hello")
            episode.reward(1.0)
        assert dataset[0].state == "[user]\nHELLO"
        with (
            pytest.raises(CallbackError, match="redact raised ValueError"),
            record(dataset, redact=broken),
        ):
            talk(server, "hello")
    assert len(dataset) == 1
    assert not dataset.waiting


def test_a_rule_that_is_none_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="regular expressions"),
        record(TrajectoryDataset(), redact=["("]),
    ):
        pass


def test_keys_of_a_remote_server_among_the_tools_are_not_kept() -> None:
    tool = {
        "type": "mcp",
        "server_label": "s",
        "authorization": "mcp-secret-1",
        "headers": {"Authorization": "Bearer mcp-secret-2"},
    }
    answer = {"id": "r", "status": "completed", "output": []}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer))
    dataset = TrajectoryDataset()
    with record(dataset), httpx2.Client(transport=transport) as client:
        body = {
            "model": "m",
            "input": "hi",
            "tools": [tool],
            "metadata": {"api_key": "mcp-secret-3"},
        }
        client.post("http://m/v1/responses", json=body)
    (item,) = dataset.waiting
    assert "mcp-secret" not in str(item.to_dict())
    assert item.tools is not None
    assert item.tools[0]["server_label"] == "s"


def test_a_key_that_an_error_repeats_is_not_kept_even_where_the_error_is_cut() -> None:
    key = "canary-" + "k" * 40
    other = "sk-" + "b2" * 20
    text = "x" * 480 + f" {key} and {other}"
    transport = httpx2.MockTransport(lambda _: httpx2.Response(401, text=text))
    dataset = TrajectoryDataset()
    with (
        pytest.raises(DataError) as error,
        record(dataset) as episode,
        httpx2.Client(transport=transport) as client,
    ):
        client.post(
            "http://m/v1/chat/completions",
            json={"model": "m", "messages": []},
            headers={"authorization": f"Bearer {key}"},
        )
    for place in (str(error.value), episode.failures[0].error):
        assert "canary" not in place
        assert "b2b2" not in place
