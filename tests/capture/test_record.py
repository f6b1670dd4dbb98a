"""What `record` sees of plain clients: every call, whichever way it is made, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from orbiter.train import DataError, StorageError, TrajectoryDataset, TrajectoryItem
from orbiter.train.capture import record, traced
from tests.capture.server import Deed, ModelServer

KEY = "sk-test-0123456789"
Anything = Any
"""Arguments of clients, and clients."""
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def chat(server: ModelServer, text: str = "Hello", **more: Anything) -> None:
    with openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=more.pop("retries", 0)) as c:
        answer = c.chat.completions.create(
            model="m", messages=[{"role": "user", "content": text}], **more
        )
        if more.get("stream"):
            for _ in answer:
                pass


def respond(server: ModelServer, **more: Anything) -> None:
    tools = [TOOLS[0]["function"] | {"type": "function"}] if more.pop("tools", None) else None
    given: Anything = {"tools": tools} if tools else {}
    with openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        answer: Anything = client.responses.create(
            model="m", input="Hello", instructions="Be kind.", **given, **more
        )
        if more.get("stream"):
            for _ in answer:
                pass


def message(server: ModelServer, **more: Anything) -> None:
    tools: Anything = (
        [{"name": "add", "input_schema": {"type": "object"}}] if more.pop("tools", None) else []
    )
    with anthropic.Anthropic(base_url=server.root, api_key=KEY, max_retries=0) as client:
        answer = client.messages.create(
            model="m",
            max_tokens=9,
            system="Be kind.",
            messages=[{"role": "user", "content": "Hello"}],
            tools=tools,
            **more,
        )
        if more.get("stream"):
            for _ in answer:
                pass


APIS = [chat, respond, message]
each_api = pytest.mark.parametrize("ask", APIS)
streamed_or_not = pytest.mark.parametrize("stream", [False, True])


def one_item(ask: Callable[[], object]) -> TrajectoryItem:
    dataset = TrajectoryDataset()
    with record(dataset) as episode:
        ask()
        episode.reward(1.0)
    (item,) = dataset
    return item


@each_api
@streamed_or_not
def test_streamed_and_whole_replies_become_the_same_item(
    server: ModelServer, ask: Callable[..., None], stream: bool
) -> None:
    how = {"stream": True} if stream else {}
    item = one_item(lambda: ask(server, **how))

    assert item.action == "The answer is 5."
    assert item.state.endswith("[user]\nHello")
    assert item.metadata["input_tokens"] == 10
    assert item.metadata["response_id"]
    assert item.metadata["finish_reason"] in {"stop", "completed", "end_turn"}
    assert item.messages is not None
    assert item.messages[-1]["content"] == "Hello"
    if ask is not chat:
        assert item.messages[0] == {"role": "system", "content": "Be kind."}


@each_api
@streamed_or_not
def test_parallel_calls_of_tools_come_in_openais_form(
    server: ModelServer, ask: Callable[..., None], stream: bool
) -> None:
    server.calls_at_once = 2
    item = one_item(lambda: ask(server, tools=TOOLS, **({"stream": True} if stream else {})))

    assert item.action == f"{CALL}\n{CALL.replace('3', '4')}"
    assert [call["id"] for call in item.tool_calls or ()] == ["call_0_0", "call_0_1"]
    assert item.tools is not None
    assert item.tools[0]["function"]["name"] == "add"  # type: ignore[index]


@each_api
@pytest.mark.parametrize("deed", ["break_off", "error_event"])
def test_a_stream_that_breaks_leaves_what_came_with_its_error(
    server: ModelServer, ask: Callable[..., None], deed: Deed
) -> None:
    server.plan = lambda _number: deed
    dataset = TrajectoryDataset()
    with record(dataset) as episode:
        if (ask, deed) == (respond, "error_event"):
            ask(server, stream=True)  # the Responses client yields the error as an event
        else:
            broken_off = (httpx.RemoteProtocolError, httpx2.RemoteProtocolError)
            with pytest.raises((openai.APIError, anthropic.APIError, *broken_off)):
                ask(server, stream=True)
        episode.reward(0.0)

    (item,) = dataset
    assert "The answer is 5.".startswith(item.action)
    assert item.action != "The answer is 5."
    assert ("Overloaded" in str(item.metadata["error"])) is (deed == "error_event")


def test_a_reply_that_breaks_off_is_a_failure_and_its_retry_the_item(server: ModelServer) -> None:
    server.plan = lambda number: ("break_off", "break_before", "status_500")[number] if (
        number < 3
    ) else "answer"  # fmt: skip
    item = one_item(lambda: chat(server, retries=3))

    failed = item.metadata["failed_attempts"]
    assert isinstance(failed, list)
    assert [attempt["status"] for attempt in failed] == [0, 0, 500]
    assert len(server.seen) == 4


async def test_async_tasks_keep_their_episodes_apart(server: ModelServer) -> None:
    server.latency = 0.02
    dataset = TrajectoryDataset()
    async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY) as client:

        async def ask(text: str, *, stream: bool) -> None:
            answer: Any = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": text}], stream=stream
            )
            if stream:
                async for _ in answer:
                    pass

        async def attempt(number: int) -> None:
            with record(dataset, task_id=f"t{number}") as episode:
                async with asyncio.TaskGroup() as group:
                    group.create_task(ask(f"a{number}", stream=False))
                    group.create_task(ask(f"b{number}", stream=True))
                episode.reward(number)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(attempt(number))

    assert len(dataset) == len(server.seen) == 40
    for item in dataset:
        assert item.task_id == f"t{item.reward:.0f}"
        assert item.state[-len(str(item.task_id)) + 1 :] == str(item.task_id)[1:]


def test_threads_started_inside_belong_to_the_episode(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    pool = ThreadPoolExecutor(1)
    with pool, record(dataset) as episode:
        pool.submit(chat, server).result()
        thread = threading.Thread(target=chat, args=(server,))
        thread.start()
        thread.join()
        episode.reward(1.0)
        assert episode.calls == 2
    assert len(dataset) == 2


def test_a_pools_worker_forgets_the_episode_that_started_it(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with ThreadPoolExecutor(1) as pool:
        with record(dataset):
            pool.submit(chat, server).result()
        pool.submit(chat, server).result()
        with record(dataset) as later:
            pool.submit(chat, server, "later").result()
    assert len(dataset.waiting) == 2
    assert dataset.waiting[1].episode_id == later.id
    assert dataset.waiting[1].state == "[user]\nlater"


def test_a_nested_block_is_an_episode_of_its_own(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with record(dataset, agent="planner", task_id="t") as outer:
        chat(server, "plan")
        with record(dataset, agent="worker") as inner:
            chat(server, "work")
            inner.reward(0.5)
        chat(server, "conclude")
        outer.reward(1.0)

    assert [(item.agent, item.step, item.reward) for item in dataset] == [
        ("worker", 0, 0.5),
        ("planner", 0, 1.0),
        ("planner", 1, 1.0),
    ]
    assert {item.task_id for item in dataset} == {"t"}
    assert dataset[0].metadata["parent_episode"] == outer.id
    assert outer.calls == 3


def test_the_reward_of_an_episode_is_discounted_back(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with record(dataset) as episode:
        for _ in range(3):
            chat(server)
        episode.reward(1.0, gamma=0.5)
        assert len(dataset) == 0
    assert [item.reward for item in dataset] == [0.25, 0.5, 1.0]


def test_a_step_may_have_a_reward_of_its_own(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with record(dataset) as episode:
        chat(server)
        episode.step_reward(0.1)
        chat(server)
    assert [(item.step, item.reward) for item in dataset] == [(0, 0.1)]
    episode.reward(1.0)
    assert [(item.step, item.reward) for item in dataset] == [(0, 0.1), (1, 1.0)]


def test_a_block_that_raises_keeps_its_calls_and_its_reward(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with pytest.raises(ZeroDivisionError), record(dataset) as episode:
        chat(server)
        episode.reward(1.0)
        raise ZeroDivisionError
    assert len(dataset) == 1


def test_token_ids_and_logprobs_are_kept_when_the_server_gives_them(server: ModelServer) -> None:
    server.token_ids = True
    for stream in (False, True):
        item = one_item(lambda stream=stream: chat(server, stream=stream, logprobs=True))  # type: ignore[misc]  # a default binds it
        said = server.seen[-1].said
        assert item.prompt_token_ids == said["prompt_token_ids"]
        assert item.token_ids == said["choices"][0]["token_ids"]
        assert item.logprobs == [-0.5] * len(item.token_ids or ())


def test_of_several_answers_the_first_is_the_action_and_the_others_stand_beside_it(
    server: ModelServer,
) -> None:
    for stream in (False, True):
        item = one_item(lambda stream=stream: chat(server, stream=stream, n=3))  # type: ignore[misc]  # a default binds it
        assert item.action == "The answer is 5."
        assert item.metadata["other_answers"] == ["Answer 2.", "Answer 3."]


def test_an_anthropic_agents_turns_go_on_from_one_another(server: ModelServer) -> None:
    tools: Anything = [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}]
    messages: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
    dataset = TrajectoryDataset()

    async def agent() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.root, api_key=KEY) as client:
            given: Anything = {"model": "m", "max_tokens": 9, "tools": tools, "messages": messages}
            async with client.messages.stream(**given) as stream:
                asked = await stream.get_final_message()
            call = asked.content[0]
            assert call.type == "tool_use"
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "5"}
            messages.append({"role": "assistant", "content": [call.model_dump()]})
            messages.append({"role": "user", "content": [result]})
            await client.messages.create(**given)

    with record(dataset) as episode:
        asyncio.run(agent())
        episode.reward(1.0)
    asking, telling = dataset
    assert asking.action == CALL
    assert telling.state == f"{asking.state}\n\n[assistant]\n{CALL}\n\n[tool add]\n5"
    assert telling.tools == asking.tools
    assert telling.metadata["api"] == "messages"


def test_a_conversation_kept_by_the_server_is_put_together_again(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with (
        record(dataset) as episode,
        openai.OpenAI(base_url=server.url, api_key=KEY) as client,
    ):
        first = client.responses.create(model="m", input="One?", instructions="Old.")
        client.responses.create(
            model="m", input="Two?", instructions="New.", previous_response_id=first.id
        )
        episode.reward(1.0)
    assert dataset[1].state == (
        "[system]\nNew.\n\n[user]\nOne?\n\n[assistant]\nThe answer is 5.\n\n[user]\nTwo?"
    )


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_both_transports_are_seen_and_stay_what_they_are(
    server: ModelServer, library: Anything
) -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    url = f"{server.url}/chat/completions"
    dataset = TrajectoryDataset()
    with library.Client() as client:
        plain = client.post(url, json=body)
        with record(dataset) as episode:
            seen = client.post(url, json=body)
            with client.stream("POST", url, json=body) as streamed:
                raw = b"".join(streamed.iter_raw())
            client.get(f"{server.url}/models")
            episode.reward(1.0)
    assert seen.content.replace(b"chatcmpl-1", b"chatcmpl-0") == plain.content.replace(
        b"11", b"10"
    ).replace(b'"prompt_tokens": 10', b'"prompt_tokens": 11')
    assert raw.endswith(b"data: [DONE]\n\n")
    assert seen.elapsed.total_seconds() > 0
    assert streamed.elapsed.total_seconds() > 0
    assert [item.action for item in dataset] == ["The answer is 5."] * 2


def test_a_stream_given_up_early_is_kept_as_far_as_it_came(server: ModelServer) -> None:
    server.chunk_pause = 0.01
    dataset = TrajectoryDataset()
    with (
        record(dataset) as episode,
        openai.OpenAI(base_url=server.url, api_key=KEY) as client,
    ):
        for open_still in (False, True):
            stream = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            for _, chunk in zip(range(3), stream, strict=False):
                assert chunk.choices
            if not open_still:
                stream.close()
        episode.reward(0.0)
    stream.close()
    assert len(dataset) == 2
    for item in dataset:
        assert item.action == "The answer is 5."[: len(item.action)]
        assert 0 < len(item.action) < 16
        assert item.metadata["error"]


def test_half_a_surrogate_pair_in_a_calls_arguments_costs_no_call(tmp_path: Path) -> None:
    said = {"name": "add", "arguments": '{"a": "\\ud800"}'}
    message = {"tool_calls": [{"id": "c", "type": "function", "function": said}]}
    answer = json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, text=answer))
    with (
        TrajectoryDataset(path=tmp_path / "journal") as dataset,
        record(dataset),
        httpx2.Client(transport=transport) as client,
    ):
        client.post("http://m/chat/completions", json={"messages": []})
    assert dataset.waiting[0].action.endswith('{"a": "\ufffd"}}</tool_call>')


# Nothing captured is an error, and says why.


def test_nothing_captured_names_the_other_requests(server: ModelServer) -> None:
    with (
        pytest.raises(DataError, match=r"no known model API.*GET 127\.0\.0\.1/v1/models"),
        record(TrajectoryDataset()),
        httpx2.Client() as client,
    ):
        client.get(f"{server.url}/models")


def test_nothing_captured_names_the_failure(server: ModelServer) -> None:
    server.plan = lambda _number: "status_500"
    with (
        pytest.raises(DataError, match=r"1 requests .* status 500.*try again"),
        record(TrajectoryDataset()) as episode,
    ):
        with pytest.raises(openai.InternalServerError):
            chat(server)
        episode.reward(1.0)


def test_nothing_captured_names_calls_made_elsewhere(server: ModelServer) -> None:
    go, done = threading.Event(), threading.Event()

    def ask() -> None:
        go.wait(5)
        chat(server)
        done.set()

    threading.Thread(target=ask).start()
    with (
        pytest.raises(DataError, match="1 model calls were made at the same time outside"),
        record(TrajectoryDataset()),
    ):
        go.set()
        assert done.wait(5)


def test_nothing_captured_names_the_ways_without_http() -> None:
    with pytest.raises(DataError, match="needs the proxy"), record(TrajectoryDataset()):
        pass


def test_an_answer_that_cannot_be_read_is_a_failure(
    server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.plan = lambda _number: "gibberish"
    with pytest.raises(DataError, match="not JSON"), record(TrajectoryDataset()):
        httpx2.post(f"{server.url}/chat/completions", json={"model": "m", "messages": []})
    assert "could not be read" in caplog.text


def test_a_journal_that_cannot_be_written_is_told_at_the_end(
    server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    dataset = TrajectoryDataset(path=tmp_path / "journal")
    with pytest.raises((StorageError, OSError)), record(dataset):
        dataset.close()
        chat(server)


# Agents without HTTP.


async def test_traced_functions_and_the_plain_recorder_serve_agents_without_http() -> None:
    @traced
    def echo(text: str) -> str:
        return text.upper()

    @traced(agent="second")
    async def add(a: int, b: int = 3) -> int:
        return a + b

    assert echo("outside") == "OUTSIDE"
    dataset = TrajectoryDataset()
    with record(dataset, agent="a", task_id="t") as episode:
        assert echo("hi") == "HI"
        assert await add(2) == 5
        episode.add("seen", "done", metadata={"k": 1})
        episode.reward(1.0)
    assert [(item.state, item.action) for item in dataset] == [
        ("hi", "HI"),
        ('{"a": 2}', "5"),
        ("seen", "done"),
    ]
    assert dataset[1].metadata == {"traced": "second"}
    assert [item.step for item in dataset] == [0, 1, 2]
