"""Rows that join and leave draw what they would have drawn alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.sample import sample
from orbiter.train.errors import StateError
from orbiter.train.serve import batching
from orbiter.train.serve import decoding as serve_decoding
from orbiter.train.serve.batching import Batcher, _without
from orbiter.train.serve.decoding import Slots
from orbiter.train.serve.reply import DrawSettings, GrowingReply

PROMPTS = [[256, 104, 105 + i, *range(60, 60 + 7 * i)] for i in range(9)]


def batcher(policy: Policy, max_rows: int = 4) -> Batcher:
    return Batcher(policy, max_rows=max_rows, max_waiting=100)


def alone(policy: Policy, prompt: list[int], sampling: DrawSettings) -> list[Rollout]:
    return sample(
        policy,
        [prompt],
        n=sampling.n,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )


def assert_same(reply: GrowingReply, rollouts: list[Rollout]) -> None:
    for choice, rollout in zip(reply.choices, rollouts, strict=True):
        assert [token.token_id for token in choice.tokens] == rollout.completion_ids
        logprobs = torch.tensor([token.logprob for token in choice.tokens])
        want = torch.tensor(rollout.old_logprob[rollout.prompt_length :])
        torch.testing.assert_close(logprobs, want, rtol=0, atol=2e-5)
        assert choice.text.known == rollout.text
        assert choice.finish_reason == rollout.finish_reason


@pytest.fixture(scope="module")
def generic() -> Policy:
    loaded = load_model("tiny", device="cpu")
    return make_policy(loaded.model, loaded.tokenizer, device="cpu", path="generic")


@pytest.mark.parametrize("path", ["fast", "generic"])
async def test_each_request_draws_what_sample_draws_for_it_alone(
    policy: Policy, generic: Policy, path: str
) -> None:
    """Different lengths, settings and moments of arrival, more rows than places."""
    asked = [
        DrawSettings(
            n=1 + i % 3,
            max_new_tokens=5 + 4 * i,
            temperature=(0.0, 1.0, 0.7)[i % 3],
            top_p=(1.0, 0.9)[i % 2],
            seed=i,
        )
        for i in range(len(PROMPTS))
    ]
    used = policy if path == "fast" else generic
    async with batcher(used) as loop:
        replies = []
        for prompt, sampling in zip(PROMPTS, asked, strict=True):
            replies.append(loop.submit(prompt, sampling))
            await asyncio.sleep(0.004)
        for reply in replies:
            await reply.finished()
    for reply, prompt, sampling in zip(replies, PROMPTS, asked, strict=True):
        assert_same(reply, alone(used, prompt, sampling))


async def test_room_that_nobody_has_written_to_is_never_read(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch fills such memory with NaN here."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        async with batcher(policy) as loop:
            asked = [DrawSettings(max_new_tokens=5 * i, seed=i) for i in (1, 2, 3, 60)]
            replies = [loop.submit(PROMPTS[i], one) for i, one in enumerate(asked)]
            for reply in replies:
                await reply.finished()
    finally:
        torch.use_deterministic_algorithms(False)
    for reply, prompt in zip(replies, PROMPTS, strict=False):
        assert_same(reply, alone(policy, prompt, reply.sampling))


async def test_rows_join_while_others_decode(policy: Policy) -> None:
    async with batcher(policy) as loop:
        long = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=400, temperature=0))
        await long.changed()
        short = loop.submit(PROMPTS[1], DrawSettings(max_new_tokens=3, temperature=0))
        await short.finished()
        assert not long.done
        long.leave()


async def test_a_batch_waits_for_prompts_that_are_being_written(policy: Policy) -> None:
    async with batcher(policy) as loop:
        decoder = loop._decoding
        joined: list[int] = []
        join = decoder.join

        def counted(prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
            joined.append(len(prompts))
            return join(prompts, copies)

        decoder.join = counted  # type: ignore[method-assign]
        with loop.announced():
            first = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=3))
            await asyncio.sleep(0.005)
            assert loop.running == 0
            second = loop.submit(PROMPTS[1], DrawSettings(max_new_tokens=3))
        await first.finished()
        await second.finished()
    assert joined == [2]


async def test_a_prompt_that_takes_long_to_write_holds_up_nobody(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "GATHER_SECONDS", 0.01)
    async with batcher(policy) as loop, asyncio.timeout(60):
        with loop.announced():
            await loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=3)).finished()


async def test_slots_shrink_after_a_long_conversation(policy: Policy) -> None:
    async with batcher(policy) as loop:
        room = []
        for prompt in ([*PROMPTS[0], *range(32, 127)] * 3, PROMPTS[0]):
            reply = loop.submit(prompt, DrawSettings(max_new_tokens=4))
            await reply.finished()
            slots = loop._decoding
            assert isinstance(slots, Slots)
            room.append(slots._k[0].shape[2])
            assert_same(reply, alone(policy, prompt, reply.sampling))
    assert room[1] < room[0] / 2


def test_in_16_bits_attending_to_the_whole_slot_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = load_model("tiny", device="cpu")
    policy = make_policy(loaded.model, loaded.tokenizer, device="cpu", dtype="bfloat16")
    logits = []
    for share in (0.0, 100.0):
        monkeypatch.setattr(serve_decoding, "SPARE_SHARE", share)
        slots = serve_decoding.decoding(policy, cache_bytes=0, snapshot=False)
        slots.join(PROMPTS[3:6], [2, 1, 1])
        for token in (70, 80, 90):
            last = slots.step(torch.full((4,), token))
        logits.append(last.float())
    torch.testing.assert_close(*logits, rtol=0, atol=2e-2)


async def test_the_likeliest_tokens_are_those_of_a_full_forward(policy: Policy) -> None:
    sampling = DrawSettings(max_new_tokens=4, temperature=0.5, top_logprobs=3, seed=5)
    async with batcher(policy) as loop:
        reply = loop.submit(PROMPTS[2], sampling)
        await reply.finished()
    drawn = reply.choices[0].tokens
    assert drawn
    ids = torch.tensor([[*PROMPTS[2], *(token.token_id for token in drawn)]])
    with torch.no_grad():
        logits = policy.model(ids).logits[0, len(PROMPTS[2]) - 1 : -1]
    want = (logits / 0.5).log_softmax(dim=-1)
    for place, token in enumerate(drawn):
        assert token.logprob == pytest.approx(want[place, token.token_id].item(), abs=1e-5)
        top = want[place].topk(3)
        assert [i for i, _ in token.top] == top.indices.tolist()
        assert [x for _, x in token.top] == pytest.approx(top.values.tolist(), abs=1e-5)


async def test_who_leaves_frees_the_place_at_once(policy: Policy) -> None:
    async with batcher(policy, max_rows=1) as loop:
        leaving = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=900, temperature=0))
        never = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=900, temperature=0))
        never.leave()
        await leaving.changed()
        leaving.leave()
        staying = loop.submit(PROMPTS[1], DrawSettings(max_new_tokens=3, temperature=0))
        await staying.finished()
        assert len(leaving.choices[0].tokens) < 20
        assert not never.choices[0].tokens


async def test_requests_begin_in_the_order_in_which_they_came(policy: Policy) -> None:
    """A wide one is not overtaken for ever by narrow ones."""
    async with batcher(policy, max_rows=3) as loop:
        running = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=30, temperature=0))
        await running.changed()
        wide = loop.submit(PROMPTS[1], DrawSettings(n=3, max_new_tokens=2, temperature=0))
        narrow = loop.submit(PROMPTS[2], DrawSettings(max_new_tokens=1, temperature=0))
        await narrow.finished()
        assert wide.done
        assert running.done


async def test_a_model_that_fails_fails_its_requests_and_answers_the_next(policy: Policy) -> None:
    async with batcher(policy) as loop:
        bad = loop.submit([policy.context_length], DrawSettings(max_new_tokens=3))  # no such token
        with pytest.raises(IndexError):
            await bad.finished()
        good = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=3, temperature=0))
        await good.finished()
    assert_same(good, alone(policy, PROMPTS[0], good.sampling))


async def test_whoever_waits_when_the_loop_closes_is_told(policy: Policy) -> None:
    async with batcher(policy, max_rows=1) as loop:
        running = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=900, temperature=0))
        waiting = loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=900, temperature=0))
        await running.changed()
    for reply in (running, waiting):
        with pytest.raises(StateError, match="closed before"):
            await reply.finished()
    with pytest.raises(StateError, match="closing"):
        loop.submit(PROMPTS[0], DrawSettings(max_new_tokens=1))


def test_the_last_rows_fill_the_places_of_those_that_go() -> None:
    numbers = random.Random(0)
    for _ in range(200):
        count = numbers.randint(0, 9)
        gone = [i for i in range(count) if numbers.random() < 0.4]
        order = _without(gone, count)
        assert sorted(order) == [i for i in range(count) if i not in gone]
        assert all(row == place or row >= len(order) for place, row in enumerate(order))
