"""Is attention in blocks the plain softmax attention, with the same gradients and less memory?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orbiter.train.engine.forward import attend as module
from orbiter.train.engine.forward.attend import Beginning, attend, key_ends

SHAPES = [(1, 9, 9), (3, 7, 20), (2, 16, 16), (1, 5, 5)]
"""Rows, queries and keys; with fewer queries than keys, the first keys are a prompt's."""


Parts = tuple[Tensor, Tensor, Tensor]


def inputs(rows: int, queries: int, keys: int, dtype: torch.dtype) -> tuple[Parts, Tensor]:
    """Draw queries, keys and values, and a causal mask in which rows have prompts of any length."""
    generator = torch.Generator().manual_seed(0)

    def part(heads: int, length: int) -> Tensor:
        drawn = torch.randn(rows, heads, length, 8, generator=generator)
        return drawn.to(dtype).requires_grad_()

    parts = part(4, queries), part(2, keys), part(2, keys)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).repeat(rows, 1, 1)
    for row in range(1, rows):
        seen[row, :, row : keys - queries] = False
    return parts, torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The equation, with every score at once."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias[:, None]).softmax(-1)
    return weight @ v


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("blocks", [True, False])
def test_blocks_give_the_attention_and_the_gradients_of_the_equation(
    shape: tuple[int, int, int],
    fused: bool,
    known: bool,
    blocks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LONG_FROM", 0)
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "WORTH_READING", 1.0 if blocks else 0.0)
    if not fused:
        monkeypatch.setattr(module, "fused_attention_works", lambda *_: False)
    parts, bias = inputs(*shape, torch.float32)
    weight = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(1))
    mixed = attend(*parts, bias, key_ends(bias) if known else ())
    got = [mixed, *torch.autograd.grad((mixed * weight).sum(), parts)]
    exact = softmax_attention(*parts, bias)
    wanted = [exact, *torch.autograd.grad((exact * weight).sum(), parts)]
    for mine, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("of_row", [[0, 0, 0], [0, 1, 0], [2, 0, 1]])
@pytest.mark.parametrize("long_from", [0, 10_000])
@pytest.mark.parametrize("reading", [0.0, 1.0])
@pytest.mark.parametrize("fused", [True, False])
def test_a_beginning_that_rows_share_is_as_one_of_each_row(
    of_row: list[int],
    long_from: int,
    reading: float,
    fused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LONG_FROM", long_from)
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "WORTH_READING", reading)
    if not fused:
        monkeypatch.setattr(module, "fused_attention_works", lambda *_: False)
    (q, own_k, own_v), bias = inputs(3, 7, 20, torch.float32)
    generator = torch.Generator().manual_seed(2)
    own_k, own_v = (x.detach()[:, :, 13:].clone().requires_grad_() for x in (own_k, own_v))
    k, v = (
        torch.randn(max(of_row) + 1, 2, 13, 8, generator=generator).requires_grad_()
        for _ in range(2)
    )
    parts = (q, own_k, own_v, k, v)
    weight = torch.randn(q.shape, generator=generator)
    whole_k, whole_v = (torch.cat([x[of_row], own], dim=2) for x, own in ((k, own_k), (v, own_v)))
    exact = softmax_attention(q, whole_k, whole_v, bias)
    wanted = [exact, *torch.autograd.grad((exact * weight).sum(), parts)]
    mixed = attend(q, own_k, own_v, bias, key_ends(bias), beginning=Beginning(k, v, of_row))
    got = [mixed, *torch.autograd.grad((mixed * weight).sum(), parts)]
    for mine, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_in_16_bits_err_no_more_than_plain_products(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, bias = inputs(*shape, torch.bfloat16)
    weight = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(1))
    wide = tuple(part.detach().float().requires_grad_() for part in parts)
    q, k, v = wide
    exact = softmax_attention(q, k, v, bias.float())
    wanted = torch.autograd.grad((exact * weight).sum(), wide)

    def error() -> float:
        mixed = attend(*parts, bias, key_ends(bias))
        got = torch.autograd.grad((mixed.float() * weight).sum(), parts)
        pairs = zip(got, wanted, strict=True)
        return max(float((mine.float() - right).square().mean().sqrt()) for mine, right in pairs)

    plain = error()
    monkeypatch.setattr(module, "LONG_FROM", 0)
    monkeypatch.setattr(module, "BLOCK", 4)
    assert 0 < error() <= 1.3 * plain


def test_a_block_reads_keys_up_to_the_last_one_that_it_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LONG_FROM", 0)
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "WORTH_READING", 1.0)
    _, causal = inputs(1, 9, 9, torch.float32)
    assert key_ends(causal) == [4, 8, 9]
    parts, bias = inputs(2, 6, 12, torch.float32)
    assert key_ends(bias) == [10, 12]
    q, k, v = (part.detach().clone() for part in parts)
    k[:, :, 10:], v[:, :, 10:] = math.nan, math.nan
    # What no query of the first block sees is not even read.
    mixed = attend(q, k, v, bias, key_ends(bias))
    assert mixed[:, :, :4].isfinite().all()
    assert mixed[:, :, 4:].isnan().any()


def test_a_long_prompt_keeps_no_scores_for_backward() -> None:
    parts, bias = inputs(1, 1024, 1024, torch.bfloat16)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(*parts, bias, key_ends(bias))
    # The mask is shared by all layers; the scores of four heads would be four times as many.
    assert sum(kept) <= bias.numel() + sum(part.numel() for part in parts)


def test_attention_in_blocks_without_gradients_is_the_same() -> None:
    parts, bias = inputs(1, 600, 600, torch.bfloat16)
    with_gradients = attend(*parts, bias, key_ends(bias))
    with torch.inference_mode():
        assert torch.equal(attend(*parts, bias, key_ends(bias)), with_gradients)
