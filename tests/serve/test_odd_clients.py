"""Requests that make no sense cost their sender a 400, and nobody else anything."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from orbiter.train.engine.policy import Policy
from orbiter.train.serve import PolicyServer, answering
from orbiter.train.serve.batching import Batcher
from orbiter.train.serve.reply import DrawSettings
from tests.serve.test_batching import PROMPTS, alone, assert_same

HELLO: Any = [{"role": "user", "content": "Hello"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

ODD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 1e-39}, "temperature"),
    ({"temperature": 5e-324}, "temperature"),
    ({"top_p": 1e-39}, "top_p"),
    ({"stop": ["x"] * 100}, "stop"),
    ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages[0].tool_calls"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL | {"id": 7}]}]},
        "messages[0].tool_calls[0].id",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": [1]}}],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": 3}]},
        "messages[0].tool_call_id",
    ),
    ({"tool_choice": {"function": "x"}, "tools": []}, "tool_choice"),
    *(
        ({name: value}, name)
        for name, value in {
            "guided_choice": ["a"],
            "guided_json": {},
            "structured_outputs": {"choice": ["a"]},
            "stop_token_ids": [5],
            "min_tokens": 3,
            "ignore_eos": True,
            "allowed_token_ids": [1],
            "chat_template_kwargs": {"enable_thinking": False},
            "chat_template": "{{ messages }}",
            "logits_processors": ["x"],
            "reasoning_effort": "high",
            "no_such_setting": 1,
        }.items()
    ),
]


@pytest.mark.parametrize(("change", "param"), ODD)
async def test_an_odd_request_gets_400_and_the_next_one_its_answer(
    policy: Policy, change: dict[str, Any], param: str
) -> None:
    async with PolicyServer(policy, name="tiny") as server, httpx2.AsyncClient() as client:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 4}
        odd = await client.post(f"{server.url}/chat/completions", json=body | change)
        assert odd.status_code == 400, odd.text
        assert odd.json()["error"]["param"] == param
        plain = await client.post(f"{server.url}/chat/completions", json=body)
        assert plain.status_code == 200


async def test_settings_at_their_defaults_pass(policy: Policy) -> None:
    neutral = {
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "min_tokens": 0,
        "stop_token_ids": [], "chat_template_kwargs": {}, "guided_json": None, "logit_bias": {},
        "prompt_cache_key": "a", "service_tier": "auto", "safety_identifier": "b",
        "temperature": 1e-5, "top_p": 1e-5,
    }  # fmt: skip
    async with PolicyServer(policy, name="tiny") as server, httpx2.AsyncClient() as client:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 4} | neutral
        answer = await client.post(f"{server.url}/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("it was rendered")

    monkeypatch.setattr(answering, "chat_text", never)
    async with PolicyServer(policy, name="tiny") as server, httpx2.AsyncClient() as client:
        for size, status in [(15_000_000, 400), (20_000_000, 413)]:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * size}]}
            answer = await client.post(f"{server.url}/chat/completions", json=body)
            assert answer.status_code == status
            if status == 400:
                assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_a_template_that_fails_on_a_conversation_is_a_400(policy: Policy) -> None:
    template = policy.tokenizer.chat_template
    try:
        async with PolicyServer(policy, name="tiny") as server, httpx2.AsyncClient() as client:
            for broken, words in [
                ("{{ messages[0].content + 1 }}", "chat template"),
                (None, "no chat template"),
            ]:
                policy.tokenizer.chat_template = broken
                body = {"model": "tiny", "messages": HELLO}
                answer = await client.post(f"{server.url}/chat/completions", json=body)
                assert answer.status_code == 400
                assert words in answer.json()["error"]["message"]
    finally:
        policy.tokenizer.chat_template = template


async def test_a_request_that_fails_in_the_model_fails_alone(policy: Policy) -> None:
    """Rows under way go on and draw what they would have drawn; others that begin do so too."""
    async with Batcher(policy, max_rows=8, max_waiting=100) as loop:
        running = [
            loop.submit(PROMPTS[i], DrawSettings(max_new_tokens=40, seed=i, n=1 + i % 2))
            for i in range(3)
        ]
        await running[0].changed()
        bad = loop.submit([policy.context_length], DrawSettings(max_new_tokens=3))  # no such token
        beside = loop.submit(PROMPTS[4], DrawSettings(max_new_tokens=20, seed=9, n=2))
        with pytest.raises(IndexError):
            await bad.finished()
        for reply in (*running, beside):
            async with asyncio.timeout(60):
                await reply.finished()
    for reply in (*running, beside):
        assert_same(reply, alone(policy, reply.prompt_ids, reply.sampling))
