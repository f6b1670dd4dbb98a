"""Asks a model in all ways that openai's client knows, and says what was captured of that as JSON.

Run by `test_openai2.py`, in a process where an older client is installed.
"""

import asyncio
import json
from typing import Any

import openai

from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record
from tests.capture.server import Deed, ModelServer

KEY = "sk-test-0123456789"
QUESTION: Any = [{"role": "user", "content": "What is 2 + 3?"}]
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
HOW: list[Any] = [{}, {"stream": True}, {"tools": TOOLS}, {"tools": TOOLS, "stream": True}]
DEEDS: dict[int, Deed] = {8: "status_500", 10: "break_off"}
"""The ninth request is retried, the last one breaks off in the middle of its stream."""


def ask(client: openai.OpenAI) -> None:
    for how in HOW:
        answer = client.chat.completions.create(model="m", messages=QUESTION, **how)
        if how.get("stream"):
            list(answer)
    client.responses.create(model="m", input="Hello")
    list(client.responses.create(model="m", input="Hello", stream=True))


async def ask_async(client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(model="m", messages=QUESTION)
    async for _ in await client.chat.completions.create(model="m", messages=QUESTION, stream=True):
        pass
    await client.responses.create(model="m", input="Hello")
    async for _ in await client.chat.completions.create(model="m", messages=QUESTION, stream=True):
        pass


def main() -> None:
    dataset = TrajectoryDataset()
    with ModelServer(plan=lambda number: DEEDS.get(number, "answer")) as server:
        server.calls_at_once = 2
        with record(dataset) as episode:
            with openai.OpenAI(base_url=server.url, api_key=KEY) as client:
                ask(client)
            asynchronous = openai.AsyncOpenAI(base_url=server.url, api_key=KEY)
            try:
                asyncio.run(ask_async(asynchronous))
            except Exception as error:
                broken = type(error).__module__.partition(".")[0]
            episode.reward(1.0)
        told = {
            "version": openai.__version__,
            "transport": openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0],
            "broken": broken,
            "requests": len(server.seen),
            "failures": len(episode.failures),
            "items": [item.to_dict() for item in dataset],
        }
    print(json.dumps(told))  # noqa: T201 - that is what it is for


if __name__ == "__main__":
    main()
