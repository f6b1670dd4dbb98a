"""The element-wise parts give what plain autograd gives, and round alike with and without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.forward.pointwise import gated, rms_norm, rotate

EPS = 1e-5
Case = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]


def cases(dtype: torch.dtype) -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    cos, sin = values(5, 1, 8), values(5, 1, 4)
    signed = torch.cat([-sin, sin], dim=-1)

    def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), weight.shape, weight, EPS).to(dtype)

    def plain_turn(x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * cos + wide.roll(4, -1) * signed).to(dtype)

    return {
        "norm": (
            lambda x, weight: rms_norm(x, weight, EPS, dtype),
            plain_norm,
            [values(5, 8), values(8)],
        ),
        "norm of heads": (
            lambda x, weight: rms_norm(x, weight, EPS, dtype),
            plain_norm,
            [values(5, 3, 8).to(dtype), values(8)],
        ),
        "turn": (
            lambda x: rotate(x, cos, signed, dtype),
            plain_turn,
            [values(5, 3, 8).to(dtype)],
        ),
        "gate": (
            gated,
            lambda gate, up: functional.silu(gate) * up,
            [values(5, 8).to(dtype), values(5, 8).to(dtype)],
        ),
    }


@pytest.mark.parametrize("name", list(cases(torch.float32)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_are_those_of_autograd(name: str, dtype: torch.dtype) -> None:
    mine, plain, inputs = cases(dtype)[name]
    results = []
    for function in (mine, plain):
        leaves = [value.clone().requires_grad_() for value in inputs]
        out = function(*leaves)
        out.backward(torch.linspace(-1, 2, out.numel()).view_as(out).to(out.dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for got, want in zip(*results, strict=True):
        assert got is not None
        assert want is not None
        assert got.dtype == want.dtype
        scale = float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", list(cases(torch.float32)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_without_gradients_rounds_alike(name: str, dtype: torch.dtype) -> None:
    mine, _, inputs = cases(dtype)[name]
    learning = mine(*[value.clone().requires_grad_() for value in inputs])
    with torch.no_grad():
        assert torch.equal(mine(*inputs), learning)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    x, weight = torch.randn(4, 8), torch.ones(8)
    rms_norm(x, weight.requires_grad_(), EPS, torch.float32).sum().backward()
    assert x.grad is None
    frozen = torch.ones(8)
    rms_norm(x.requires_grad_(), frozen, EPS, torch.float32).square().sum().backward()
    assert frozen.grad is None
    assert x.grad is not None
