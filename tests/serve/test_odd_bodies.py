"""No body makes the server fail: it is answered, or it is a 4xx that says why."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx2

from orbiter.train.engine.policy import Policy
from orbiter.train.serve import PolicyServer

HELLO: Any = [{"role": "user", "content": "Hello"}]
GOOD: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
HUGE = int("9" * 400)
DEEP: Any = "x"
for _ in range(500):
    DEEP = {"a": DEEP}


HALF = b'{"model":"tiny","max_tokens":2,"messages":[{"role":"user","content":"\\ud800"}]}'
TOOLS = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(1000)]


def with_content(content: object) -> dict[str, Any]:
    return GOOD | {"messages": [{"role": "user", "content": content}]}


def with_tool(**function: object) -> dict[str, Any]:
    return GOOD | {"tools": [{"type": "function", "function": {"name": "f"} | function}]}


CHAT: dict[str, bytes | dict[str, Any]] = {
    "half a surrogate pair": HALF,
    "no UTF-8": b'{"model":"tiny","messages":[{"role":"user","content":"\xff"}]}',
    "a NUL": with_content("a\0b"),
    "empty content": with_content(""),
    "content of nothing": with_content(None),
    "content of parts": with_content([{"type": "text", "text": "a"}] * 1000),
    "content of an image": with_content([{"type": "image_url", "image_url": {"url": "x"}}]),
    "content of numbers": with_content([1, 2]),
    "special tokens in the text": with_content("<|bos|><|eos|><|pad|>"),
    "a template in the text": with_content("{{ 7 * 7 }}{% raw %}"),
    "many messages": GOOD | {"messages": HELLO * 20_000},
    "no messages": GOOD | {"messages": []},
    "messages of nothing": GOOD | {"messages": None},
    "messages of text": GOOD | {"messages": "hi"},
    "a message of nothing": GOOD | {"messages": [None]},
    "a message without a role": GOOD | {"messages": [{"content": "x"}]},
    "a deep tool": with_tool(parameters=DEEP),
    "a tool without a name": GOOD | {"tools": [{"type": "function", "function": {}}]},
    "a tool named by a number": with_tool(name=5),
    "a thousand tools": GOOD | {"tools": TOOLS},
    "a long stop": GOOD | {"stop": "x" * 1_000_000},
    "stops of numbers": GOOD | {"stop": [1, 2]},
    "an empty stop": GOOD | {"stop": [""]},
    "a temperature too high": GOOD | {"temperature": 3},
    "a temperature below zero": GOOD | {"temperature": -0.0001},
    "a temperature of a text": GOOD | {"temperature": "hot"},
    "a temperature of true": GOOD | {"temperature": True},
    "a temperature without end": HALF.replace(b'"max_tokens":2', b'"temperature":1e999'),
    "a top_p of zero": GOOD | {"top_p": 0},
    "a seed too large": GOOD | {"seed": 2**64},
    "a seed of hundreds of digits": GOOD | {"seed": HUGE},
    "no answers": GOOD | {"n": 0},
    "too many answers": GOOD | {"n": 10_000},
    "no tokens": GOOD | {"max_tokens": 0},
    "too many tokens": GOOD | {"max_tokens": HUGE},
    "more tokens than fit": GOOD | {"max_tokens": 10**9},
    "half a token": GOOD | {"max_tokens": 1.5},
    "too many logprobs": GOOD | {"logprobs": True, "top_logprobs": 1000},
    "a stream of a text": GOOD | {"stream": "yes"},
    "options of a stream": GOOD | {"stream": True, "stream_options": {"include_usage": "no"}},
    "another model": GOOD | {"model": "../../etc/passwd"},
    "a model of a number": GOOD | {"model": 5},
    "keys twice": b'{"model":"tiny","model":"other","messages":[]}',
    "an array": b"[]",
    "a number": b"5",
    "nothing": b"",
    "half of it": b'{"model": "tiny"',
    "two of them": b"{}{}",
    "NaN": b'{"model":"tiny","temperature":NaN,"messages":[]}',
    "deep nesting": b'{"model":' + b"[" * 100_000,
    "deep and closed": b'{"model":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "a long name": json.dumps({"x" * 1_000_000: 1}).encode(),
    "many names": json.dumps({f"x{i}": 1 for i in range(100_000)}).encode(),
}  # fmt: skip
OTHER: dict[str, dict[str, bytes | dict[str, Any]]] = {
    "/responses": {
        "half a surrogate pair": b'{"model":"tiny","input":"\\ud800"}',
        "input of a number": {"model": "tiny", "input": 5},
        "input of nothing": {"model": "tiny", "input": None},
        "an unknown item": {"model": "tiny", "input": [{"type": "nope"}]},
        "an answer that is not here": {"model": "tiny", "input": "x", "previous_response_id": "r"},
        "no tokens": {"model": "tiny", "input": "x", "max_output_tokens": 0},
    },
    "/messages": {
        "half a surrogate pair": HALF,
        "no limit": {"model": "tiny", "messages": HELLO},
        "a system of numbers": {"model": "tiny", "max_tokens": 2, "system": 5, "messages": HELLO},
        "an unknown part": {"model": "tiny", "max_tokens": 2,
                            "messages": [{"role": "user", "content": [{"type": "nope"}]}]},
    },
}  # fmt: skip


async def test_no_body_makes_the_server_fail(policy: Policy) -> None:
    rows = [("/chat/completions", what, body) for what, body in CHAT.items()]
    rows += [(path, what, body) for path, bodies in OTHER.items() for what, body in bodies.items()]
    async with (
        PolicyServer(policy, name="tiny") as server,
        httpx2.AsyncClient(timeout=60) as client,
    ):
        for path, what, body in rows:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await client.post(f"{server.url}{path}", content=raw)
            assert answer.status_code in (200, 400, 404, 413), (path, what, answer.text[:300])
            assert len(answer.text) < 20_000, (path, what)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"], (path, what)
        good = await client.post(f"{server.url}/chat/completions", json=GOOD)
        assert good.status_code == 200


async def test_no_changed_byte_makes_the_server_fail(policy: Policy) -> None:
    """Fuzz: 600 requests with a few bytes changed, removed or doubled."""
    draw = random.Random(0)
    whole = json.dumps(
        with_tool(parameters={"type": "object"}) | {"stop": ["x"], "seed": 1}
    ).encode()
    async with (
        PolicyServer(policy, name="tiny") as server,
        httpx2.AsyncClient(timeout=60) as client,
    ):
        for _ in range(600):
            raw = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                place = draw.randrange(len(raw))
                raw[place : place + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 2))
            answer = await client.post(f"{server.url}/chat/completions", content=bytes(raw))
            assert answer.status_code in (200, 400, 404), (bytes(raw), answer.text[:300])
