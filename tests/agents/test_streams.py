"""Turns become streams: exact continuations merge, every sampled token is trained once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, lists

from orbiter.train.agents import Stream, token_weights, turns_to_streams
from orbiter.train.agents.streams import shared_beginnings
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.forward.packing import Packing
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import make_policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.update import score
from orbiter.train.errors import ConfigError, DataError


class Asked(NamedTuple):
    """A turn, written by hand."""

    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]


def turn(prompt: list[int], *sampled: int) -> Asked:
    return Asked(prompt, sampled, [-token / 10 for token in sampled])


def trained(streams: Sequence[Stream]) -> list[tuple[int, int]]:
    """The (turn, token) pairs that are trained, over all streams."""
    return sorted(
        (stream.turn[t], stream.token_ids[t])
        for stream in streams
        for t, trains in enumerate(stream.mask)
        if trains
    )


def test_a_prompt_that_extends_a_stream_continues_it_and_tool_tokens_are_not_trained() -> None:
    (stream,) = turns_to_streams([turn([1, 2], 3, 4), turn([1, 2, 3, 4, 90, 91], 5)])
    assert stream.token_ids == [1, 2, 3, 4, 90, 91, 5]
    assert stream.mask == [False, False, True, True, False, False, True]
    assert stream.logprobs == [0.0, 0.0, -0.3, -0.4, 0.0, 0.0, -0.5]
    assert stream.turn == [-1, -1, 0, 0, -1, -1, 1]
    assert stream.prompt_length == 2


@pytest.mark.parametrize(
    "rewritten",
    [
        [1, 2, 9, 4, 90],  # another token inside the answer
        [1, 2, 3],  # the answer is cut off
        [1, 2, 3, 4, 90][1:],  # the beginning is dropped
        [7, 7],  # a sub-agent with its own prompt
    ],
)
def test_a_history_that_was_rewritten_begins_a_new_stream(rewritten: list[int]) -> None:
    first, second = turns_to_streams([turn([1, 2], 3, 4), turn(rewritten, 5)])
    assert first.token_ids == [1, 2, 3, 4]
    assert second.token_ids == [*rewritten, 5]
    assert second.mask == [False] * len(rewritten) + [True]
    assert trained([first, second]) == [(0, 3), (0, 4), (1, 5)]


def test_a_token_that_two_streams_share_is_trained_in_the_first_only() -> None:
    opening = turn([1], 2)
    left, right = turn([1, 2, 8], 3), turn([1, 2, 9], 4)  # two parallel branches after one answer
    streams = turns_to_streams([opening, left, right])
    assert [s.token_ids for s in streams] == [[1, 2, 8, 3], [1, 2, 9, 4]]
    assert trained(streams) == [(0, 2), (1, 3), (2, 4)]
    assert streams[1].turn == [-1, 0, -1, 2]  # it remembers who sampled the shared token
    assert streams[1].prompt_length == 3


def test_the_longest_stream_is_continued() -> None:
    # The last prompt begins with both streams: the shorter one is a beginning of the longer one.
    turns = [turn([1], 2), turn([1], 2, 3), turn([1, 2, 3, 9], 4)]
    assert [s.token_ids for s in turns_to_streams(turns)] == [[1, 2], [1, 2, 3, 9, 4]]


def test_the_same_prompt_asked_twice_is_two_samples() -> None:
    streams = turns_to_streams([turn([1], 2), turn([1], 2)])
    assert trained(streams) == [(0, 2), (1, 2)]


def test_a_turn_that_sampled_nothing_adds_nothing() -> None:
    assert turns_to_streams([turn([1])]) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Asked([1], [2, 3], [-0.1]), "turn 1 .* 2 sampled tokens and 1 log prob"),
        (Asked([], [2], [-0.1]), "turn 1 .* no prompt tokens"),
    ],
)
def test_a_turn_that_cannot_be_trained_on_is_named(bad: Asked, message: str) -> None:
    with pytest.raises(DataError, match=message):
        turns_to_streams([turn([1], 2), bad])


WHOLE = [turn([1], 2, 3), turn([1, 2, 3, 9], 4, 5, 6)]
BRANCHED = [turn([1], 2, 3), turn([1, 8], 4, 5, 6)]
SHORT = [turn([1], 2)]


@pytest.mark.parametrize(
    ("normalisation", "long", "short"),
    [("token", 1 / 6, 1 / 6), ("episode", 1 / 10, 1 / 2), ("constant", 1 / 16, 1 / 16)],
)
def test_the_weight_of_a_token_does_not_depend_on_the_branches_of_its_episode(
    normalisation: str, long: float, short: float
) -> None:
    for episode in (WHOLE, BRANCHED):
        streams = [turns_to_streams(episode), turns_to_streams(SHORT), []]
        weights = token_weights(streams, normalisation, max_tokens=8)  # type: ignore[arg-type]
        flat = [w for stream in weights[0] for w in stream if w]
        assert flat == pytest.approx([long] * 5)
        assert weights[1] == [[0.0, pytest.approx(short)]]
        assert weights[2] == []


def test_what_cannot_be_weighted_is_refused() -> None:
    streams = [turns_to_streams(SHORT)]
    with pytest.raises(ConfigError, match=r"needs max_tokens >= 1, got None"):
        token_weights(streams, "constant")
    with pytest.raises(ConfigError, match="got 'sequence'"):
        token_weights(streams, "sequence")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="none of the 1 episodes"):
        token_weights([[]], "token")


def test_streams_become_a_batch() -> None:
    rows = [
        Rollout(s.token_ids, s.mask, s.logprobs, s.prompt_length)
        for s in turns_to_streams(BRANCHED)
    ]
    batch = collate(rows)
    assert batch.mask.sum() == 5
    assert torch.equal(batch.sampled_logprob[0], torch.tensor([0.0, -0.2, -0.3, 0.0, 0.0]))


def stream(prompt: list[int], *sampled: int) -> Stream:
    (made,) = turns_to_streams([turn(prompt, *sampled)])
    return made


def test_prompts_that_begin_alike_share_their_beginning() -> None:
    alike = [stream([1, 2, 3, 4, 5], 6), stream([7, 8], 6), stream([1, 2, 3, 4, 9, 9], 6)]
    assert shared_beginnings(alike) == [4, 2, 4]
    assert shared_beginnings([*alike, stream([1, 2, 3, 4, 5], 7)]) == [4, 2, 4, 4]
    # Half of the longest prompt has to be common, with every prompt of the cluster.
    assert shared_beginnings([stream([1, 2, 3], 6), stream([1, 9, 9], 6)]) == [3, 3]
    chain = [stream([1, 2, 3, 4], 6), stream([1, 2, 3, 5], 6), stream([1, 2, 9, 9, 9], 6)]
    assert shared_beginnings(chain) == [3, 3, 5]
    assert shared_beginnings([]) == []


@settings(max_examples=200)
@given(lists(lists(integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_shared_beginning_is_shared_and_no_longer_than_the_prompt(
    prompts: list[list[int]],
) -> None:
    streams = [stream(prompt, 3) for prompt in prompts]
    beginnings = shared_beginnings(streams)
    for prompt, length in zip(prompts, beginnings, strict=True):
        assert 1 <= length <= len(prompt)
        assert 2 * length >= len(prompt)
        # Equal prompts are treated alike, so that they still run once.
        assert all(
            n == length for other, n in zip(prompts, beginnings, strict=True) if other == prompt
        )


def test_an_update_with_shared_beginnings_runs_fewer_tokens_and_has_the_same_gradient() -> None:
    loaded = load_model("tiny", device="cpu", seed=0)
    policy = make_policy(loaded.model, loaded.tokenizer, dtype="float32", device="cpu")
    tools = list(range(40, 90))
    streams = [
        stream([*tools, task, 200], *answer)
        for task in (1, 2, 3)
        for answer in ((5, 6, 7), (5, 9), (8,))
    ]

    def batch(lengths: list[int]) -> Batch:
        return collate(
            [
                Rollout(each.token_ids, each.mask, each.logprobs, length)
                for each, length in zip(streams, lengths, strict=True)
            ],
            advantage=torch.linspace(-1, 1, len(streams)),
        )

    def gradient(of: Batch) -> torch.Tensor:
        assert of.advantage is not None
        loss = (score(policy, of).logprob * of.advantage).sum()
        grads = torch.autograd.grad(loss, list(policy.named_trainable().values()))
        return torch.cat([grad.flatten() for grad in grads])

    own = batch([each.prompt_length for each in streams])
    shared = batch(shared_beginnings(streams))
    assert len(Packing.of(own).token_ids) - len(Packing.of(shared).token_ids) == 2 * len(tools)
    expected = gradient(own)
    torch.testing.assert_close(gradient(shared), expected, rtol=1e-4, atol=1e-5)
    assert float(expected.norm()) > 1
