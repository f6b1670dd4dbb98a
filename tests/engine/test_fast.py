"""Both forward passes are Hugging Face's own, in value and in gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from orbiter.train.engine import arithmetic
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.forward import attend, layers
from orbiter.train.engine.forward.packing import Packing
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout, given
from orbiter.train.engine.update import score

MakePolicy = Callable[..., Policy]
Move = Callable[[Policy], Policy]

ROLLOUTS = [
    given(list(b"hello there"), [1, 2, 258, 258, 9]),
    given(list(b"hello there"), [77]),
    given(list(b"abc"), [257, 3, 4]),
    given(list(b"hello there"), [5, 6, 7, 8, 9, 10, 11, 12]),
    # Two turns: the tool's answer in between is given and masked out.
    Rollout([*b"abc", 1, 2, 50, 51, 52, 3, 4], [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2,
            [0.0] * 10, prompt_length=3),
    # The same once more, a beginning that forks, and one that another row goes on behind.
    given(list(b"hello there"), [1, 2, 258, 258, 9]),
    given(list(b"hello there"), [1, 2, 258, 40, 41]),
    given(list(b"hello there"), [1, 3, 258, 40, 41]),
    given(list(b"hello there"), [5, 6, 7]),
]  # fmt: skip


def by_hugging_face(policy: Policy, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log probabilities and entropies [N] by the model's own forward, as a stranger would."""
    seen = torch.arange(batch.mask.shape[1]) < batch.length[:, None]
    out = policy.model(batch.token_ids, attention_mask=seen.long(), use_cache=False)
    log_softmax = torch.log_softmax(out.logits[:, :-1] / temperature, dim=-1)
    logprob = log_softmax.gather(2, batch.token_ids[:, 1:, None])[..., 0]
    entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
    return logprob[batch.mask[:, 1:]], entropy[batch.mask[:, 1:]]


def gradients(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    named = policy.named_trainable()
    slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: s for n, s in zip(named, slopes, strict=True) if s is not None}


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("llama", "fast"),
        ("qwen2", "fast"),
        ("qwen3", "fast"),
        ("llama", "generic"),
        ("qwen3", "generic"),
        ("gemma", "generic"),
        ("gemma2", "generic"),
        ("gpt2", "generic"),
    ],
)
def test_values_and_gradients_equal_autograd_through_hugging_face(
    policy_of: MakePolicy, randomised: Move, family: str, path: str, lora_rank: int
) -> None:
    policy = policy_of(family, lora_rank=lora_rank, path="auto" if path == "fast" else "generic")
    assert policy.path == path
    if lora_rank:
        randomised(policy)
    batch = collate(ROLLOUTS)
    count = int(batch.mask.sum())
    slope, tilt = torch.linspace(-1, 2, count), torch.linspace(1, -1, count)
    ours = score(policy, batch, temperature=0.7)
    mine = ours.logprob[batch.mask], ours.entropy[batch.mask]
    theirs = by_hugging_face(policy, batch, 0.7)
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
    got, want = (
        gradients(policy, (logprob * slope + entropy * tilt).sum())
        for logprob, entropy in (mine, theirs)
    )
    assert set(got) == set(want)
    for name, gradient in want.items():
        error = (got[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert float(error) < 1e-4, name


def test_no_beginning_of_an_answer_is_run_twice() -> None:
    batch = collate(ROLLOUTS)
    packing = Packing.of(batch)
    states, scored = set[tuple[int, ...]](), set[tuple[int, ...]]()
    for rollout in ROLLOUTS:
        ids = rollout.token_ids
        states |= {tuple(ids[:end]) for end in range(1, len(ids))}
        scored |= {tuple(ids[: t + 1]) for t in range(len(ids)) if rollout.mask[t]}
    assert len(packing.token_ids) == len(states)
    assert len(packing.asked) == len(scored)
    rows, columns = batch.mask.nonzero(as_tuple=True)
    assert torch.equal(packing.target[packing.trained], batch.token_ids[rows, columns])


def test_the_padding_row_of_the_embedding_gets_no_input_gradient(policy_of: MakePolicy) -> None:
    policy = policy_of("llama")
    batch = collate([given([65, 258, 66], [67])])
    loss = score(policy, batch).logprob.sum()
    slope = gradients(policy, loss)["model.embed_tokens.weight"]
    assert float(slope[258].abs().max()) == 0.0
    assert float(slope[66].abs().max()) > 0.0


@pytest.mark.parametrize("path", ["auto", "generic"])
def test_neither_order_nor_padding_nor_grouping_changes_a_row(
    policy_of: MakePolicy, path: str
) -> None:
    policy = policy_of("qwen2", path=path)
    batch = collate(ROLLOUTS)
    together = score(policy, batch)
    for row in range(len(ROLLOUTS)):
        alone = score(policy, batch.select(torch.tensor([row])))
        width = alone.logprob.shape[1]
        torch.testing.assert_close(
            alone.logprob[0], together.logprob[row, :width], atol=1e-5, rtol=0
        )
    order = torch.tensor([3, 0, 7, 4, 8, 6, 2, 1, 5])
    torch.testing.assert_close(
        score(policy, batch.select(order)).logprob, together.logprob[order], atol=1e-5, rtol=0
    )


def test_long_rows_get_the_same_attention(
    policy_of: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch = policy_of("llama"), collate(ROLLOUTS)
    plain = score(policy, batch).logprob
    monkeypatch.setattr(attend, "LONG_FROM", 0)
    monkeypatch.setattr(attend, "BLOCK", 2)
    torch.testing.assert_close(score(policy, batch).logprob, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prepack_from", [0, 1 << 40])
def test_every_layout_of_a_packed_weight_is_the_same_product(
    policy_of: MakePolicy, monkeypatch: pytest.MonkeyPatch, prepack_from: int
) -> None:
    monkeypatch.setattr(arithmetic, "PREPACK_FROM", prepack_from)
    policy = policy_of("qwen2")
    attention_block = policy.forward.model.model.layers[0].self_attn  # type: ignore[attr-defined]
    modules = [attention_block.q_proj, attention_block.k_proj, attention_block.v_proj]
    x = torch.randn(5, 64)
    packed = arithmetic.packed_linear(*layers.merged(modules), torch.float32)(x)
    torch.testing.assert_close(packed, torch.cat([m(x) for m in modules], dim=-1))


@pytest.mark.usefixtures("each_processor")
@pytest.mark.parametrize("path", ["auto", "generic"])
def test_bfloat16_stays_near_float32(policy_of: MakePolicy, path: str) -> None:
    batch = collate(ROLLOUTS)
    full = score(policy_of("llama"), batch).logprob.detach()
    half = score(policy_of("llama", dtype="bfloat16", path=path), batch).logprob.detach()
    assert 0 < float((full - half)[batch.mask].abs().mean()) < 0.03


def test_a_model_that_does_not_fit_says_why_once(
    policy_of: MakePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="orbiter.train.engine.policy"):
        assert policy_of("gpt2").path == "generic"
    assert [
        record.getMessage()
        for record in caplog.records
        if "GPT2LMHeadModel" in record.msg % record.args
    ] != []
    assert len(caplog.records) == 1


def test_a_forward_that_disagrees_with_hugging_face_is_not_taken(
    policy_of: MakePolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layers.Rotary, "turn", lambda _, x, dtype: x.to(dtype))
    with caplog.at_level(logging.INFO, logger="orbiter.train.engine.policy"):
        assert policy_of("llama").path == "generic"
    assert "differ" in caplog.text
