"""A live policy: turns keep what was sampled, and log probabilities are those of the model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch

from orbiter.train.engine.policy import Policy
from orbiter.train.engine.session import work
from orbiter.train.serve.live import LivePolicy, LiveSession
from tests.serve.conftest import ADD

USER: dict[str, Any] = {"role": "user", "content": "Add"}


async def ask(
    session: LiveSession, messages: list[dict[str, Any]], **settings: object
) -> dict[str, Any]:
    """Ask for a chat completion and return its body, with its status as `status`."""
    body = {"model": "gpt-any", "messages": messages} | settings
    answer = await session.handle("/v1/chat/completions", {}, json.dumps(body).encode())
    whole = b"".join([chunk async for chunk in answer.chunks])
    return {"status": answer.status, **json.loads(whole)}


def teacher_forced(policy: Policy, prompt: list[int], drawn: list[int]) -> list[float]:
    """Score drawn tokens with Hugging Face's own forward over the whole stream."""
    ids = torch.tensor([[*prompt, *drawn]])
    with torch.no_grad():
        logits = policy.model(ids, use_cache=False).logits[0].float()
    scores = logits[:-1].log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    return [float(score) for score in scores[len(prompt) - 1 :]]


async def play(session: LiveSession, *, turns: int = 3, **settings: object) -> None:
    """Play an agent that answers every call with a number and asks on after any text."""
    messages: list[dict[str, Any]] = [dict(USER)]
    for number in range(turns):
        message = (await ask(session, messages, tools=[ADD], **settings))["choices"][0]["message"]
        messages.append({k: v for k, v in message.items() if v is not None})
        calls = message.get("tool_calls") or []
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": str(number)} for call in calls
        ]
        if not calls:
            messages.append({"role": "user", "content": "And?"})


def assert_exact(policy: Policy, session: LiveSession) -> None:
    for turn in session.turns:
        want = teacher_forced(policy, turn.prompt_token_ids, turn.token_ids)
        assert turn.logprobs == pytest.approx(want, abs=1e-4)
        if turn.continues is not None:
            before = session.turns[turn.continues]
            stream = [*before.prompt_token_ids, *before.token_ids]
            assert turn.prompt_token_ids[: len(stream)] == stream


async def test_turns_keep_sampled_ids_and_their_logprobs_are_teacher_forced(
    caller: Policy,
) -> None:
    async with LivePolicy(caller, max_new_tokens=160) as live:
        sessions = [live.session(seed=seed) for seed in range(6)]
        await asyncio.gather(*(play(session) for session in sessions))
        for session in sessions:
            assert len(session.turns) == 3
            assert [turn.continues for turn in session.turns] == [None, 0, 1]
            await work(assert_exact, caller, session)
        assert live.stats.run_share < 0.5
