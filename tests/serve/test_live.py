"""A live policy: turns keep what was sampled, and log probabilities are those of the model."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.thread import work
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


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something that happens on the decode loop's thread."""
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110 - another thread has no event of this loop
            await asyncio.sleep(0.001)


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


async def test_rewritten_json_and_missing_text_still_continue_the_stream(caller: Policy) -> None:
    """Clients re-serialise arguments, send "" or nothing for None, and may name parts of text."""
    async with LivePolicy(caller, max_new_tokens=160, temperature=0) as live:
        session = live.session(seed=0)
        first = (await ask(session, [USER], tools=[ADD]))["choices"][0]["message"]
        rewritten = [dict(call) for call in first["tool_calls"]]
        for call in rewritten:
            arguments = json.loads(call["function"]["arguments"])
            call["function"] = {
                "name": "add",
                "arguments": json.dumps({k: float(v) for k, v in arguments.items()}, indent=1),
            }
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in rewritten
        ]
        said = {"role": "assistant", "content": [{"type": "text", "text": "Well: "}]}
        await ask(session, [USER, said | {"tool_calls": rewritten}, *results], tools=[ADD])
        assert session.turns[1].continues == 0
        assert session.turns[1].drift  # a re-rendering puts the calls on lines without "Well: "
        await work(assert_exact, caller, session)


async def test_a_changed_history_begins_a_new_stream(caller: Policy) -> None:
    async with LivePolicy(caller, max_new_tokens=40, temperature=0) as live:
        session = live.session(seed=0)
        answer = (await ask(session, [USER]))["choices"][0]["message"]
        said = {"role": "assistant", "content": answer["content"]}
        more = {"role": "user", "content": "And?"}
        await ask(session, [USER, said, more])
        await ask(session, [USER, said | {"content": said["content"] + "x"}, more])
        await ask(session, [{"role": "user", "content": "Summary"}, more])
        await ask(session, [USER, said, {"role": "user", "content": "A branch"}])
        assert [turn.continues for turn in session.turns] == [None, 0, None, None, 0]
        await work(assert_exact, caller, session)


async def test_an_answer_that_was_cut_off_is_continued_with_its_end_given(caller: Policy) -> None:
    async with LivePolicy(caller, max_new_tokens=3, temperature=0) as live:
        session = live.session(seed=0)
        answer = (await ask(session, [USER], tools=[ADD]))["choices"][0]
        assert answer["finish_reason"] == "length"
        said = {"role": "assistant", "content": answer["message"]["content"]}
        await ask(session, [USER, said, {"role": "user", "content": "On"}], tools=[ADD])
        first, second = session.turns
        stream = [*first.prompt_token_ids, *first.token_ids]
        end = caller.tokenizer.eos_token_id
        assert second.prompt_token_ids[: len(stream) + 1] == [*stream, end]
        assert not second.drift


async def test_a_template_that_drops_earlier_thoughts_begins_a_new_stream() -> None:
    loaded = load_model("tiny", device="cpu")
    policy = make_policy(loaded.model, loaded.tokenizer, device="cpu")
    policy.tokenizer.chat_template = (
        "{%- for m in messages -%}{{ bos_token + m.role }}:"
        "{{ m.content if loop.last else m.content[1:] }}{{ eos_token }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ bos_token + 'assistant:' }}{%- endif -%}"
    )
    async with LivePolicy(policy, max_new_tokens=6) as live:
        session = live.session(seed=0)
        answer = (await ask(session, [USER]))["choices"][0]["message"]
        said = {"role": "assistant", "content": answer["content"]}
        await ask(session, [USER, said, {"role": "user", "content": "On"}])
        assert [turn.continues for turn in session.turns] == [None, None]
        assert session.turns[1].drift


async def test_draws_do_not_depend_on_cache_rows_or_order_of_arrival(caller: Policy) -> None:
    """Token by token; log probabilities differ by rounding only (float32)."""

    async def drawn(*, cache_bytes: int, max_rows: int, reverse: bool) -> list[LiveSession]:
        async with LivePolicy(
            caller, max_new_tokens=60, max_rows=max_rows, cache_bytes=cache_bytes
        ) as live:
            sessions = [live.session(seed=seed) for seed in range(5)]
            order = sessions[::-1] if reverse else sessions
            await asyncio.gather(*(play(session, turns=2) for session in order))
            # Equal prompts that come together run once even without a cache.
            assert (live.stats.run_share < 0.4) == (cache_bytes > 0)
            return sessions

    plain = await drawn(cache_bytes=0, max_rows=64, reverse=False)
    for cache_bytes, max_rows, reverse in [(1 << 24, 64, False), (1 << 24, 2, True)]:
        again = await drawn(cache_bytes=cache_bytes, max_rows=max_rows, reverse=reverse)
        for one, two in zip(plain, again, strict=True):
            for a, b in zip(one.turns, two.turns, strict=True):
                assert (a.prompt_token_ids, a.token_ids) == (b.prompt_token_ids, b.token_ids)
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


async def test_an_update_is_refused_until_refresh_and_exact_after_it() -> None:
    loaded = load_model("tiny", device="cpu")
    policy = make_policy(loaded.model, loaded.tokenizer, device="cpu")

    def update() -> None:
        parameters = list(policy.model.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=3e-2, fused=True)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        optimiser.zero_grad()

    async with LivePolicy(policy, max_new_tokens=12) as live:
        before = live.session(seed=1)
        await ask(before, [USER])
        await work(assert_exact, policy, before)
        await work(update)
        stale = live.session(seed=1)
        refused = await ask(stale, [USER])
        assert refused["status"] == 503
        assert "refresh" in refused["error"]["message"]
        assert stale.turns == []
        await live.refresh()
        after = live.session(seed=1)
        await ask(after, [USER])
        await work(assert_exact, policy, after)
        assert [before.turns[0].weights_version, after.turns[0].weights_version] == [0, 1]


async def test_released_weights_are_gone_until_refresh(caller: Policy) -> None:
    async with LivePolicy(caller, max_new_tokens=12) as live:
        before = live.session(seed=1)
        await ask(before, [USER])
        asked = live.stats.asked_tokens
        decoder = weakref.ref(live._batcher._decoding)
        await live.release()
        assert decoder() is None
        refused = live.session(seed=1)
        answer = await ask(refused, [USER])
        assert answer["status"] == 503
        assert "refresh" in answer["error"]["message"]
        assert refused.turns == []
        assert live.stats.asked_tokens == asked
        await live.refresh()
        after = live.session(seed=1)
        await ask(after, [USER])
        assert after.turns[0].token_ids == before.turns[0].token_ids
        assert live.stats.asked_tokens == 2 * asked


async def test_a_release_waits_for_active_answers(caller: Policy) -> None:
    async with LivePolicy(caller, max_new_tokens=200, temperature=0) as live:
        session = live.session(seed=1)
        asking = asyncio.create_task(ask(session, [USER]))
        await until(lambda: live.running > 0)
        await live.release()
        assert (await asking)["status"] == 200


async def test_an_update_during_an_answer_fails_it_and_refresh_waits_for_answers() -> None:
    loaded = load_model("tiny", device="cpu")
    policy = make_policy(loaded.model, loaded.tokenizer, device="cpu")
    async with LivePolicy(policy, max_new_tokens=900, temperature=0) as live:
        session = live.session(seed=1)
        asking = asyncio.create_task(ask(session, [USER]))
        await until(lambda: live.running > 0)
        await work(lambda: policy.model.model.norm.weight.data.add_(0.1))
        assert (await asking)["status"] == 503
        await live.refresh()
        quick = live.session(seed=2)
        asking = asyncio.create_task(ask(quick, [USER], max_tokens=30))
        await until(lambda: live.running > 0)
        await live.refresh()
        assert (await asking)["status"] == 200
        assert quick.turns[0].weights_version == 1


async def test_the_trainers_settings_are_in_force_and_others_are_counted(caller: Policy) -> None:
    async with LivePolicy(caller, max_new_tokens=20, temperature=0) as live:
        session = live.session(seed=0)
        for settings in (
            {"temperature": 1.9, "seed": 5, "top_p": 0.1},
            {"response_format": {"type": "json_object"}, "guided_choice": ["a"], "top_k": 3},
        ):
            assert (await ask(session, [USER], tools=[ADD], **settings))["status"] == 200
        first, second = session.turns
        assert first.token_ids == second.token_ids
        assert session.overridden == {"temperature": 1, "seed": 1, "top_p": 1}
        assert session.dropped == {"response_format": 1, "guided_choice": 1, "top_k": 1}


async def test_limits_say_which_one_it_was(caller: Policy) -> None:
    async with LivePolicy(caller, max_new_tokens=8, temperature=0) as live:
        turns = live.session(seed=0, max_turns=1)
        await ask(turns, [USER])
        assert [turns.stop_reason] == [None]
        assert (await ask(turns, [USER]))["status"] == 400
        assert turns.stop_reason == "max_turns"
        tokens = live.session(seed=0, max_episode_tokens=40)
        await ask(tokens, [USER])
        await ask(tokens, [USER])
        assert tokens.stop_reason == "max_tokens"
        assert tokens.tokens <= 40
        context = live.session(seed=0)
        answer = await ask(context, [{"role": "user", "content": "x" * 4100}])
        assert answer["error"]["code"] == "context_length_exceeded"
        assert context.stop_reason == "context"
        context.close()
        assert (await ask(context, [USER]))["status"] == 410


async def test_a_stream_that_the_agent_leaves_is_kept_as_far_as_it_was_drawn(
    caller: Policy,
) -> None:
    async with LivePolicy(caller, max_new_tokens=900) as live:
        session = live.session(seed=3)
        body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": True}
        answer = await session.handle("/v1/chat/completions", {}, json.dumps(body).encode())
        chunks: Any = answer.chunks
        for _ in range(3):
            await anext(chunks)
        await chunks.aclose()
        await until(lambda: bool(session.turns))
        assert session.turns[0].finish_reason in {"cancelled", "stop"}
        await work(assert_exact, caller, session)


async def test_several_answers_are_several_turns_with_own_draws(caller: Policy) -> None:
    async with LivePolicy(caller, max_new_tokens=12) as live:
        session = live.session(seed=0)
        await ask(session, [{"role": "user", "content": "?"}], n=3)
        assert [turn.index for turn in session.turns] == [0, 1, 2]
        assert len({tuple(turn.token_ids) for turn in session.turns}) == 3


async def test_the_prompt_tokens_run_grow_with_what_is_new_and_not_with_the_conversation(
    caller: Policy,
) -> None:
    async def run(turns: int) -> int:
        async with LivePolicy(caller, max_new_tokens=6) as live:
            session = live.session(seed=0)
            messages: list[dict[str, Any]] = [dict(USER)]
            for _ in range(turns):
                answer = (await ask(session, messages))["choices"][0]["message"]
                messages.append({"role": "assistant", "content": answer["content"]})
                messages.append({"role": "user", "content": "And then?"})
            return live.stats.run_tokens

    four, eight, sixteen = [await run(turns) for turns in (4, 8, 16)]
    assert sixteen - eight < 1.3 * 2 * (eight - four)
    assert sixteen < 16 * 40  # one turn has 36 new tokens; all prompts together have about 5,000


async def test_siblings_and_tasks_with_one_system_prompt_share_its_run(caller: Policy) -> None:
    system = {"role": "system", "content": "Count with care. " * 10}
    async with LivePolicy(caller, max_new_tokens=4) as live:
        sessions = [live.session(seed=seed) for seed in range(12)]
        tasks = [[system, {"role": "user", "content": f"Task {place % 3}"}] for place in range(12)]
        await asyncio.gather(*map(ask, sessions, tasks))
        prompt = len(sessions[0].turns[0].prompt_token_ids)
        assert live.stats.asked_tokens == 12 * prompt
        # The system prompt ran once, and the end of each of the three tasks once, but for a few
        # requests that came one step earlier than the others.
        assert live.stats.run_tokens < prompt + 3 * 30 + 12 * 4
