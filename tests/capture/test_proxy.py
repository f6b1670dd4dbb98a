"""The proxy: any client, any process; what passes is unchanged, and recorded."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import uvicorn

from orbiter.train import ConfigError, TrajectoryDataset
from orbiter.train.capture import proxy_app, run_proxy
from tests.capture.server import ModelServer

KEY = "sk-test-0123456789"
Anything = Any


@contextmanager
def proxied(to: str, dataset: TrajectoryDataset, **how: Anything) -> Iterator[str]:
    """Serve a proxy in a thread; yield its address."""
    config = uvicorn.Config(
        proxy_app(to, dataset, **how), host="127.0.0.1", port=0, log_level="error", backlog=4096
    )
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(4096)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def ask(url: str, *, stream: bool = False) -> str:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=stream
        )
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(c.choices[0].delta.content or "" for c in answer if c.choices)


def test_every_api_passes_through_and_is_recorded_by_session(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with proxied(server.url, dataset) as proxy:
        httpx2.post(f"{proxy}/s/one", json={"agent": "solver", "task_id": "t"})
        assert ask(f"{proxy}/s/one/v1") == "The answer is 5."
        assert ask(f"{proxy}/s/one/v1", stream=True) == "The answer is 5."
        with anthropic.Anthropic(base_url=f"{proxy}/s/two", api_key=KEY) as client:
            client.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
            )
        assert httpx2.get(f"{proxy}/s/one/v1/models").json() == {"data": []}
        rewarded = httpx2.post(f"{proxy}/s/one/reward", json={"reward": 1, "gamma": 0.5})
        assert rewarded.json() == {"episode_id": "one", "items": 2}
        stepped = httpx2.post(f"{proxy}/s/two/step_reward", json={"reward": 0.5})
        assert stepped.status_code == 200

    assert [(item.episode_id, item.step, item.reward) for item in dataset] == [
        ("one", 0, 0.5),
        ("one", 1, 1.0),
        ("two", 0, 0.5),
    ]
    assert (dataset[0].agent, dataset[0].task_id) == ("solver", "t")
    assert {seen.path for seen in server.seen} >= {"/v1/chat/completions", "/v1/messages"}
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


def test_bytes_come_back_as_the_model_sent_them(server: ModelServer) -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    with proxied(server.root, TrajectoryDataset()) as proxy:
        direct = httpx2.post(f"{server.url}/chat/completions", json=body)
        passed = httpx2.post(f"{proxy}/s/x/v1/chat/completions", json=body)
    usual = passed.content.replace(b"chatcmpl-1", b"chatcmpl-0").replace(
        b'"prompt_tokens": 11', b'"prompt_tokens": 10'
    )
    assert usual == direct.content
    assert passed.headers["content-type"] == direct.headers["content-type"]


def test_a_model_that_fails_or_breaks_off_does_so_for_the_agent_too(server: ModelServer) -> None:
    server.plan = lambda number: ("status_500", "break_off", "break_before", "answer")[number]
    dataset = TrajectoryDataset()
    with proxied(server.url, dataset) as proxy:
        with pytest.raises(openai.InternalServerError, match="try again"):
            ask(f"{proxy}/s/x/v1")
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            ask(f"{proxy}/s/x/v1", stream=True)
        with pytest.raises(openai.InternalServerError, match="did not answer"):
            ask(f"{proxy}/s/x/v1")
        assert ask(f"{proxy}/s/x/v1") == "The answer is 5."
    broken, whole = dataset.waiting
    assert broken.metadata["error"]
    attempts: Any = broken.metadata["failed_attempts"]
    assert [attempt["status"] for attempt in attempts] == [500]
    attempts = whole.metadata["failed_attempts"]
    assert [attempt["status"] for attempt in attempts] == [0]


def test_a_session_goes_on_after_the_proxy_was_started_again(
    server: ModelServer, tmp_path: Path
) -> None:
    for _ in range(2):
        with (
            TrajectoryDataset(path=tmp_path / "journal") as dataset,
            proxied(server.url, dataset) as proxy,
        ):
            ask(f"{proxy}/s/x/v1")
            ask(f"{proxy}/s/x/v1")
    assert [item.step for item in dataset.waiting] == [0, 1, 2, 3]


def test_a_token_is_asked_for_and_gives_way_to_the_models_key(server: ModelServer) -> None:
    dataset = TrajectoryDataset()
    with proxied(server.url, dataset, token="let-me-in-please", api_key="real-key-0") as proxy:
        with pytest.raises(openai.AuthenticationError):
            ask(f"{proxy}/s/x/v1")
        with openai.OpenAI(base_url=f"{proxy}/s/x/v1", api_key="let-me-in-please") as client:
            client.models.list()
        assert server.seen[-1].headers["authorization"] == "Bearer real-key-0"
        headers = {"x-orbiter-token": "let-me-in-please", "authorization": "Bearer mine"}
        httpx2.get(f"{proxy}/s/x/v1/models", headers=headers)
        assert server.seen[-1].headers["authorization"] == "Bearer mine"
        assert "x-orbiter-token" not in server.seen[-1].headers
        assert len(server.seen) == 2
    with (
        proxied(server.url, dataset, token="let-me-in-please") as proxy,
        openai.OpenAI(base_url=f"{proxy}/s/x/v1", api_key="let-me-in-please") as client,
    ):
        client.models.list()
    assert "authorization" not in server.seen[-1].headers


def test_web_pages_are_refused_and_a_way_without_a_session_is_explained(
    server: ModelServer,
) -> None:
    with proxied(server.url, TrajectoryDataset()) as proxy:
        path = f"{proxy}/s/x/v1/models"
        assert httpx2.get(path, headers={"origin": "https://evil.example"}).status_code == 403
        assert httpx2.get(path, headers={"host": "evil.example"}).status_code == 403
        lost = httpx2.get(f"{proxy}/v1/models")
        assert lost.status_code == 404
        assert "/s/SESSION/v1" in lost.json()["error"]["message"]
        wrong = httpx2.post(f"{proxy}/s/x/reward", json={"reward": 1})
        assert (wrong.status_code, "waits for a reward" in wrong.text) == (400, True)
        assert httpx2.post(f"{proxy}/s/x/reward", content=b"[]").status_code == 400


def test_an_open_address_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a token="):
        run_proxy("http://127.0.0.1:1", tmp_path / "journal", host="0.0.0.0")
    with pytest.raises(ConfigError, match="address"):
        proxy_app("127.0.0.1:8000", TrajectoryDataset())


async def test_many_streams_at_once_are_neither_lost_nor_mixed() -> None:
    def echo(body: Anything) -> str:
        return "echo of " + str(body["messages"][-1]["content"]) * 20

    dataset, count = TrajectoryDataset(), 200
    with ModelServer(reply=echo) as server, proxied(server.url, dataset) as proxy:
        limits = httpx2.Limits(max_connections=count)
        async with httpx2.AsyncClient(timeout=60, limits=limits) as client:

            async def one(number: int) -> str:
                body = {
                    "model": "m",
                    "stream": True,
                    "messages": [{"role": "user", "content": f"<{number}>"}],
                }
                answer = await client.post(f"{proxy}/s/e{number}/v1/chat/completions", json=body)
                return text_in(answer.text)

            answers = await asyncio.gather(*map(one, range(count)))
    wanted = [echo({"messages": [{"content": f"<{number}>"}]}) for number in range(count)]
    assert answers == wanted
    kept = {item.episode_id: item.action for item in dataset.waiting}
    assert kept == {f"e{number}": text for number, text in enumerate(wanted)}


def text_in(stream: str) -> str:
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)
