"""Sampling draws what the policy says, row by row, whatever is batched with what."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import torch

from orbiter.train.engine import sample as sampling
from orbiter.train.engine.batch import collate
from orbiter.train.engine.branches import Branches
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout, given
from orbiter.train.engine.sample import choose, sample
from orbiter.train.engine.update import logprob
from orbiter.train.errors import ConfigError, DataError

MakePolicy = Callable[..., Policy]
PROMPTS = [list(b"hello there"), list(b"abc"), list(b"a little longer than that")]


@pytest.mark.usefixtures("each_processor")
@pytest.mark.parametrize("path", ["auto", "generic"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_recorded_logprobs_are_those_of_a_teacher_forced_forward(
    policy_of: MakePolicy,
    randomised: Callable[[Policy], Policy],
    path: str,
    temperature: float,
    lora_rank: int,
) -> None:
    policy = randomised(policy_of(path=path, lora_rank=lora_rank))
    rollouts = sample(policy, PROMPTS, n=8, max_new_tokens=60, temperature=temperature, seed=1)
    batch = collate(rollouts)
    again = logprob(policy, batch, temperature=temperature)
    assert float((again - batch.sampled_logprob).abs().max()) < 1e-4
    assert any(rollout.finish_reason == "stop" for rollout in rollouts)
    assert len({len(rollout.token_ids) for rollout in rollouts}) > 2


@pytest.mark.usefixtures("each_processor")
@pytest.mark.parametrize("path", ["auto", "generic"])
def test_what_is_drawn_does_not_depend_on_what_is_batched_with_it(
    policy_of: MakePolicy, path: str
) -> None:
    policy = policy_of(path=path)
    at_once = sample(policy, PROMPTS, n=8, max_new_tokens=80, seed=3)
    assert len({r.finish_reason for r in at_once}) == 2, "some rows must be dropped on the way"
    in_parts = sample(policy, PROMPTS, n=8, max_new_tokens=80, seed=3, max_rows=8)
    assert [r.token_ids for r in at_once] == [r.token_ids for r in in_parts]
    alone = sample(policy, PROMPTS[:1], n=1, max_new_tokens=80, seed=3)
    assert alone[0].token_ids == at_once[0].token_ids


@pytest.mark.usefixtures("each_processor")
def test_both_paths_draw_the_same_tokens(policy_of: MakePolicy) -> None:
    fast, generic = policy_of(path="auto"), policy_of(path="generic")
    assert (fast.path, generic.path) == ("fast", "generic")
    drawn = [sample(p, PROMPTS, n=4, max_new_tokens=32, seed=5) for p in (fast, generic)]
    assert [r.token_ids for r in drawn[0]] == [r.token_ids for r in drawn[1]]


@pytest.mark.parametrize("path", ["auto", "generic"])
def test_samples_that_share_a_row_are_those_of_a_plain_loop(
    policy_of: MakePolicy, path: str
) -> None:
    policy = policy_of(path=path)
    drawn = sample(policy, PROMPTS, n=8, max_new_tokens=24, temperature=0.1, seed=4)
    noise = sampling._noise(len(PROMPTS), 8, 24, 4)
    for row, rollout in enumerate(drawn):
        token_ids = list(PROMPTS[row // 8])
        for t, expected in enumerate(rollout.completion_ids):
            with torch.no_grad():
                logits = policy.model(torch.tensor([token_ids])).logits[:, -1]
            chosen = choose(logits, noise[row, t : t + 1], temperature=0.1)
            assert int(chosen.token_ids) == expected
            assert rollout.old_logprob[len(token_ids)] == pytest.approx(
                float(chosen.logprob), abs=1e-4
            )
            token_ids.append(expected)
    answers = [tuple(rollout.completion_ids) for rollout in drawn]
    beginnings = {(row // 8, a[:end]) for row, a in enumerate(answers) for end in range(len(a))}
    assert len(beginnings) < 0.8 * sum(map(len, answers)), "some must share a row for a while"


def test_a_row_forks_where_its_samples_draw_differently() -> None:
    samples = torch.tensor([0, 0, 1, 1])
    tree = Branches(samples, torch.tensor([0, 1, 0, 1]), 2)
    tree, kept, read = tree.grow(torch.tensor([5, 5, 8, 7]), rows=2)
    assert kept is not None
    assert (kept.tolist(), read.tolist()) == ([0, 1, 1], [5, 7, 8])
    assert tree.branch.tolist() == [0, 0, 2, 1]
    tree, kept, read = tree.grow(torch.tensor([6, 6, 9, 9]), rows=3)
    assert (kept, read.tolist()) == (None, [6, 9, 9])
    tree, kept, read = tree.grow(torch.tensor([3, 4, 9, 2]), rows=3)
    assert kept is not None
    assert (kept.tolist(), read.tolist(), tree.width) == ([0, 0, 1, 2], [3, 4, 2, 9], 1)


def test_seeds_and_siblings_differ_and_a_seed_repeats(policy_of: MakePolicy) -> None:
    policy = policy_of()
    first, again, other = (
        [r.token_ids for r in sample(policy, PROMPTS, n=2, max_new_tokens=16, seed=seed)]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


@pytest.mark.usefixtures("each_processor")
@pytest.mark.parametrize("path", ["auto", "generic"])
def test_greedy_takes_the_likeliest_token_every_time(policy_of: MakePolicy, path: str) -> None:
    policy = policy_of(path=path)
    (rollout,) = sample(policy, PROMPTS[:1], max_new_tokens=12, temperature=0.0)
    token_ids = list(PROMPTS[0])
    assert rollout.completion_ids
    for expected in rollout.completion_ids:
        with torch.no_grad():
            logits = policy.model(torch.tensor([token_ids])).logits[0, -1]
        assert int(logits.argmax()) == expected
        token_ids.append(expected)


def test_an_answer_ends_with_its_stop_token_and_nothing_behind_it(policy_of: MakePolicy) -> None:
    policy = policy_of()
    rollouts = sample(policy, PROMPTS, n=16, max_new_tokens=100, seed=0)
    stop = policy.stop_token_ids
    for rollout in rollouts:
        inner, last = rollout.completion_ids[:-1], rollout.completion_ids[-1]
        assert not stop & set(inner)
        assert (last in stop) == (rollout.finish_reason == "stop")
        assert len(rollout.completion_ids) == 100 or rollout.finish_reason == "stop"
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}


def test_choice_follows_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, -1)
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    chosen = choose(logits, uniform, temperature=0.5)
    share = chosen.token_ids.bincount(minlength=4) / 20_000
    torch.testing.assert_close(share, (logits[0] / 0.5).softmax(-1), atol=1e-4, rtol=0)
    expected = torch.log_softmax(logits / 0.5, dim=-1).gather(1, chosen.token_ids[:, None])[:, 0]
    torch.testing.assert_close(chosen.logprob, expected)


def test_top_p_leaves_the_tail_out_but_records_the_full_softmax() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(1000, -1)
    uniform = (torch.arange(1000) + 0.5) / 1000
    chosen = choose(logits, uniform, temperature=1.0, top_p=0.7)
    assert set(chosen.token_ids.tolist()) == {0, 1}
    assert chosen.token_ids.bincount()[0] == 625
    torch.testing.assert_close(chosen.logprob[0].exp(), torch.tensor(0.5))


def test_the_edge_of_the_uniform_numbers_never_draws_an_impossible_token() -> None:
    logits = torch.tensor([[-float("inf"), 0.0, 0.0, -float("inf")]]).expand(2, -1)
    edges = torch.tensor([0.0, 1 - 2**-20])
    assert choose(logits, edges, temperature=1.0).token_ids.tolist() == [1, 2]


def test_a_rollout_survives_json_exactly(policy_of: MakePolicy) -> None:
    rollouts = sample(policy_of(), PROMPTS, n=2, max_new_tokens=8, seed=2)
    again = msgspec.json.decode(msgspec.json.encode(rollouts), type=list[Rollout])
    assert again == rollouts


def test_streams_that_are_not_aligned_are_refused() -> None:
    with pytest.raises(DataError, match="aligned"):
        Rollout([1, 2], [False, True], [0.0], prompt_length=1)
    with pytest.raises(DataError, match="prompt_length"):
        Rollout([1, 2], [False, True], [0.0, 0.0], prompt_length=0)


def test_a_given_answer_is_trained_on_behind_its_prompt() -> None:
    rollout = given([1, 2, 3], [4, 5])
    assert rollout.mask == [False, False, False, True, True]
    assert rollout.completion_ids == [4, 5]


def test_prompts_that_do_not_fit_are_named(policy_of: MakePolicy) -> None:
    with pytest.raises(DataError, match=r"prompt 1 has 250 tokens.*246"):
        sample(policy_of(), [[1], [1] * 250], max_new_tokens=10)
    with pytest.raises(DataError, match="prompt 0 has 0 tokens"):
        sample(policy_of(), [[]], max_new_tokens=10)
    with pytest.raises(ConfigError, match="top_p=0"):
        sample(policy_of(), [[1]], max_new_tokens=10, top_p=0)
