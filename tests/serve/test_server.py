"""The endpoint, asked by OpenAI's own client over a real socket."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from orbiter.train.engine.policy import Policy
from orbiter.train.engine.prompt import render
from orbiter.train.engine.sample import sample
from orbiter.train.errors import ConfigError, StateError, StorageError
from orbiter.train.serve import PolicyServer
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import VeRLConfig, VeRLTrainer
from tests.children import started_child

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.mark.usefixtures("each_processor")
async def test_greedy_answers_are_those_of_generate_alone_and_together(
    policy: Policy, client: AsyncOpenAI
) -> None:
    trainer = VeRLTrainer(VeRLConfig(model="tiny", device="cpu"))
    prompts = [f"Question {i}" for i in range(12)]
    want = await trainer.generate(prompts, max_response_length=24)

    async def ask(prompt: str) -> str | None:
        answer = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_completion_tokens=24,
        )
        return answer.choices[0].message.content

    assert [await ask(prompt) for prompt in prompts[:3]] == want[:3]
    assert await asyncio.gather(*map(ask, prompts)) == want


async def test_a_seeded_answer_carries_the_very_tokens_and_their_logprobs(
    policy: Policy, client: AsyncOpenAI
) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        n=3,
        seed=7,
        max_tokens=10,
        temperature=0.8,
        top_p=0.95,
        logprobs=True,
        top_logprobs=2,
        extra_body={"return_token_ids": True},
    )
    prompt = render(policy.tokenizer, "Hello")
    drawn = sample(policy, [prompt], n=3, max_new_tokens=10, temperature=0.8, top_p=0.95, seed=7)
    body: Any = answer.model_dump()
    assert body["prompt_token_ids"] == prompt
    for choice, rollout in zip(body["choices"], drawn, strict=True):
        assert choice["token_ids"] == rollout.completion_ids
        assert choice["message"]["content"] == rollout.text
        content = choice["logprobs"]["content"]
        got = [token["logprob"] for token in content]
        assert got == pytest.approx(rollout.old_logprob[rollout.prompt_length :], abs=1e-5)
        assert all(len(token["top_logprobs"]) == 2 for token in content)
        for token, token_id in zip(content, rollout.completion_ids, strict=True):
            assert token["bytes"] == ([token_id] if token_id < 128 else None)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(len(r.completion_ids) for r in drawn)
    assert answer.usage.total_tokens == len(prompt) + answer.usage.completion_tokens


async def test_the_stream_adds_up_to_the_whole_answer(client: AsyncOpenAI) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": HELLO,
        "n": 2,
        "seed": 3,
        "max_tokens": 30,
        "logprobs": True,
        "extra_body": {"return_token_ids": True},
    }
    whole: Any = (await client.chat.completions.create(**asked)).model_dump()
    stream = await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks: list[Any] = [chunk.model_dump() async for chunk in stream]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for want in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == want["index"]]
        assert parts[0]["delta"]["role"] == "assistant"
        assert "".join(p["delta"]["content"] or "" for p in parts) == want["message"]["content"]
        assert [i for p in parts for i in p["token_ids"]] == want["token_ids"]
        joined = [token for p in parts for token in p["logprobs"]["content"]]
        got, kept = ([t["logprob"] for t in side] for side in (joined, want["logprobs"]["content"]))
        assert got == pytest.approx(kept, abs=1e-5)
        assert [p["finish_reason"] for p in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == want["finish_reason"] == "length"
        assert len(parts) > 5


async def test_a_stream_ends_with_openais_last_word(server: PolicyServer) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 2, "stream": True}
    async with httpx2.AsyncClient() as client:
        answer = await client.post(f"{server.url}/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("}\n\ndata: [DONE]\n\n")
    assert answer.text.count("[DONE]") == 1


async def test_without_a_seed_every_request_draws_its_own_and_a_server_repeats_itself(
    policy: Policy,
) -> None:
    async def drawn(seed: int) -> list[str | None]:
        async with (
            PolicyServer(policy, name="tiny", seed=seed) as server,
            AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
        ):
            create = client.chat.completions.create
            answers = [
                await create(model="tiny", messages=HELLO, n=2, max_completion_tokens=12)
                for _ in range(2)
            ]
        return [choice.message.content for answer in answers for choice in answer.choices]

    first = await drawn(0)
    assert len(set(first)) == 4
    assert await drawn(0) == first
    assert not {*await drawn(1)} & {*first}


async def test_the_sync_client_asks_and_streams(server: PolicyServer) -> None:
    def ask() -> tuple[str | None, str]:
        with OpenAI(base_url=server.url, api_key="none") as client:
            create = client.chat.completions.create
            whole = create(model="tiny", messages=HELLO, max_tokens=8, temperature=0)
            with create(
                model="tiny", messages=HELLO, max_tokens=8, temperature=0, stream=True
            ) as stream:
                pieces = [c.delta.content or "" for chunk in stream for c in chunk.choices]
            return whole.choices[0].message.content, "".join(pieces)

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed != ""


async def test_a_stop_text_ends_the_answer(client: AsyncOpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 40, "seed": 2}
    whole = (await client.chat.completions.create(**asked)).choices[0].message.content or ""
    stop = next(c for c in whole[3:] if c.isascii())
    cut = (await client.chat.completions.create(**asked, stop=[stop])).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


async def test_models_and_health_are_told(server: PolicyServer, client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "orbiter-train"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")
    async with httpx2.AsyncClient() as plain:
        health = await plain.get(server.url.removesuffix("/v1") + "/health")
    assert health.json() == {
        "status": "ok",
        "model": "tiny",
        "asked": 0,
        "running": 0,
        "waiting": 0,
        "prompt_tokens": 0,
        "prompt_tokens_run": 0,
        "weights_version": 0,
    }


WRONG: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"model": "gpt-9"}, 404, "model", "there is no model 'gpt-9' here"),
    ({"model": None}, 400, "model", "Expected `str`"),
    ({"messages": []}, 400, "messages", "length >= 1"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "robot"),
    ({"messages": [{"content": "x"}]}, 400, "messages[0].role", "None"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages[0].content",
        "image_url",
    ),
    (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]},
        400,
        "messages[0].tool_calls",
        "a function with a name",
    ),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", "must be text"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages", "4096 tokens"),
    ({"max_tokens": 4092}, 400, "messages", "4096 tokens"),
    ({"max_tokens": 0}, 400, "max_tokens", ">= 1"),
    ({"temperature": -1}, 400, "temperature", ">= 0"),
    ({"temperature": "hot"}, 400, "temperature", "float"),
    ({"n": 9}, 400, "n", "more than this server's 8"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs=true"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    ({"tools": [{"type": "function"}]}, 400, "tools[0]", "a tool must be"),
    ({"tools": [WEATHER], "tool_choice": "sometimes"}, 400, "tool_choice", "sometimes"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        400,
        "tool_choice",
        "names no tool",
    ),
]


@pytest.mark.parametrize(("change", "status", "param", "words"), WRONG)
async def test_what_is_wrong_is_said_in_openais_form(
    server: PolicyServer, change: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 4} | change
    async with httpx2.AsyncClient() as plain:
        answer = await plain.post(f"{server.url}/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert words in error["message"]


async def test_a_context_that_is_too_small_has_openais_code(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": "\xff"}', b"[" * 200_000])
async def test_a_body_that_is_no_request_is_refused(server: PolicyServer, body: bytes) -> None:
    async with httpx2.AsyncClient() as plain:
        answer = await plain.post(f"{server.url}/chat/completions", content=body)
        lost = await plain.get(f"{server.url}/chat/completions")
        nowhere = await plain.get(f"{server.url}/embeddings")
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert (lost.status_code, nowhere.status_code) == (405, 404)
    assert "/v1/embeddings" in nowhere.json()["error"]["message"]


async def test_settings_that_ask_for_nothing_pass(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": "Be brief."}, *HELLO],
        max_tokens=2,
        presence_penalty=0,
        response_format={"type": "text"},
        user="me",
        store=False,
        metadata={"a": "b"},
        tool_choice="none",
        tools=[WEATHER],
        parallel_tool_calls=True,
    )
    assert answer.choices[0].message.content


async def test_the_tools_stand_in_the_prompt_as_in_training(
    policy: Policy, client: AsyncOpenAI
) -> None:
    answer: Any = await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        tools=[WEATHER],
        max_tokens=1,
        extra_body={"return_token_ids": True},
    )
    item = TrajectoryItem("", "", messages=HELLO, tools=[WEATHER])
    assert answer.prompt_token_ids == render(policy.tokenizer, item)


async def test_token_ids_can_come_without_being_asked_for(policy: Policy) -> None:
    async with (
        PolicyServer(policy, name="tiny", return_token_ids=True) as server,
        AsyncOpenAI(base_url=server.url, api_key="none") as client,
    ):
        answer: Any = await client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=3
        )
    assert answer.prompt_token_ids == render(policy.tokenizer, "Hello")
    (choice,) = answer.choices
    assert len(choice.token_ids) == len(choice.logprobs.content) == 3


async def test_a_client_that_goes_away_frees_its_place(
    server: PolicyServer, client: AsyncOpenAI
) -> None:
    async def busy() -> int:
        async with httpx2.AsyncClient() as plain:
            health = await plain.get(server.url.removesuffix("/v1") + "/health")
        return int(health.json()["running"])

    async def until(running: int) -> None:
        async with asyncio.timeout(20):
            while await busy() != running:  # noqa: ASYNC110 - it is asked over the wire
                await asyncio.sleep(0.01)

    long: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 1000, "seed": 1}
    waiting = asyncio.create_task(client.chat.completions.create(**long))
    stream = await client.chat.completions.create(**long, stream=True)
    await until(2)
    await anext(aiter(stream))
    await stream.close()
    await until(1)
    waiting.cancel()
    await until(0)


async def test_where_others_can_reach_it_a_token_is_asked_for(policy: Policy) -> None:
    async with PolicyServer(policy, "0.0.0.0", name="tiny") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert server.token is not None
        assert len(server.token) >= 32
        async with AsyncOpenAI(base_url=url, api_key="guess", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError, match="the token is missing or wrong"):
                await stranger.models.list()
        async with AsyncOpenAI(base_url=url, api_key=server.token) as friend:
            assert [model.id async for model in friend.models.list()] == ["tiny"]


async def test_a_page_in_a_browser_cannot_ask_under_its_own_name(server: PolicyServer) -> None:
    async with httpx2.AsyncClient() as plain:
        for host, status in [("localhost:1", 200), ("[::1]", 200), ("evil.example", 403)]:
            answer = await plain.get(f"{server.url}/models", headers={"host": host})
            assert answer.status_code == status


def test_on_this_machine_alone_no_token_is_needed_unless_one_is_given() -> None:
    assert PolicyServer("tiny").token is None
    assert PolicyServer("tiny", "localhost").token is None
    assert PolicyServer("tiny", "::1").token is None
    assert PolicyServer("tiny", token="secret").token == "secret"
    assert PolicyServer("tiny", "10.0.0.1").token is not None


async def test_too_many_waiting_are_told_to_come_back(policy: Policy) -> None:
    async with (
        PolicyServer(policy, name="tiny", max_rows=1, max_waiting=1) as server,
        AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        long: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 900, "temperature": 0}
        stream = await client.chat.completions.create(**long, stream=True)
        await anext(aiter(stream))
        waiting = asyncio.create_task(client.chat.completions.create(**long))
        await asyncio.sleep(0.1)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**long)
        waiting.cancel()
        await stream.close()


async def test_a_port_that_is_taken_and_a_model_that_is_missing_are_named(policy: Policy) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with PolicyServer(policy, port=port):
                pass
    with pytest.raises(StorageError, match="not a saved model"):
        async with PolicyServer("./nowhere"):
            pass
    with pytest.raises(StateError, match="the port is chosen"):
        _ = PolicyServer("tiny").url
    with pytest.raises(ConfigError, match="max_rows"):
        PolicyServer("tiny", max_rows=0)
    with pytest.raises(ConfigError, match="token"):
        PolicyServer("tiny", token="é")


async def test_a_client_that_streams_when_the_server_closes_is_told(policy: Policy) -> None:
    async with PolicyServer(policy, name="tiny") as server:
        client = httpx2.AsyncClient()
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 3, "stream": True}
        async with client.stream("POST", f"{server.url}/chat/completions", json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        await client.aclose()
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: ")) for line in lines[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_of_its_own_runs_until_it_is_told_to_end(end: signal.Signals) -> None:
    program = (
        "from orbiter.train.serve import run_server\n"
        "run_server('tiny', port=0, device='cpu',"
        " on_ready=lambda server: print(server.url, flush=True))\n"
        "print('closed', flush=True)\n"
    )
    with started_child([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        url = (await asyncio.to_thread(child.stdout.readline)).strip()
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            answer = await client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=3, temperature=0
            )
        child.send_signal(end)
        rest, _ = await asyncio.to_thread(child.communicate)
    assert answer.choices[0].message.content
    # As uvicorn does: Ctrl-C ends politely, SIGTERM ends the process by that signal in the end.
    polite = ("closed\n", 0) if end is signal.SIGINT else ("", -signal.SIGTERM)
    assert (rest, child.returncode) == polite
