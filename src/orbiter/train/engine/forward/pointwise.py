"""The element-wise parts of a layer: norm, rotation and gate.

Each is one function with its own backward pass. Plain autograd would keep every intermediate
result: a norm's normalised input in float32, and the activation beside the gate. Here backward
computes them again from what the neighbouring products keep anyway, which takes fewer passes over
memory (docs/engine.md has the gain).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


class _Context(torch.autograd.function.FunctionCtx):
    """The attributes of torch's autograd context that are used here."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


def rms_norm(
    x: Float[Tensor, "*axes D"], weight: Float[Tensor, "D"], eps: float, dtype: torch.dtype
) -> Float[Tensor, "*axes D"]:
    """Return x / sqrt(mean x^2 + eps) * weight in `dtype` (Zhang and Sennrich 2019).

    It is computed in float32 whatever the dtypes: a mean of squares loses too much in bfloat16.
    """
    if _learning(x, weight):
        apply: Callable[..., Tensor] = _RmsNorm.apply
        return apply(x, weight, eps, dtype)
    return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(dtype)


def rotate(
    x: Float[Tensor, "N heads D"],
    cos: Float[Tensor, "N 1 D"],
    signed_sin: Float[Tensor, "N 1 D"],
    dtype: torch.dtype,
) -> Float[Tensor, "N heads D"]:
    """Return x cos + roll(x) signed_sin in `dtype`, where roll exchanges the halves of a head."""
    if _learning(x):
        apply: Callable[..., Tensor] = _Rotate.apply
        return apply(x, cos, signed_sin, dtype)
    return _rotated(x, cos, signed_sin).to(dtype)


def gated(gate: Float[Tensor, "N I"], up: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """Return silu(gate) * up, where silu(z) = z / (1 + exp(-z))."""
    if _learning(gate, up):
        apply: Callable[..., Tensor] = _Gated.apply
        return apply(gate, up)
    return functional.silu(gate).mul_(up)


def _learning(*tensors: Tensor) -> bool:
    """Return whether a backward pass may follow; without one, autograd's own cost is spared."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _RmsNorm(torch.autograd.Function):
    """The norm with its gradient; of intermediate results it keeps one number a token.

    With u = x s, s = 1 / sqrt(mean x^2 + eps) and g the gradient of the result,

        dx = s (w g - u mean(w g u))        dw = sum g u
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:  # noqa: ANN401 - torch's
        wide = x.float()
        # The operations of torch's own norm, so that a pass without gradients, which uses it,
        # rounds alike: importance ratios compare the two.
        scale = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        size = x.shape[-1]
        wide, unit = grad.float(), x.float() * scale
        product = wide * unit
        d_weight = product.view(-1, size).sum(dim=0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None
        mean = (product @ weight).div_(-size)[..., None]
        # The incoming gradient may be used elsewhere, so it is not written to.
        d_x = (wide * weight).addcmul_(unit, mean).mul_(scale)
        return d_x.to(x.dtype), d_weight, None, None


class _Rotate(torch.autograd.Function):
    """The rotation; its gradient is the rotation back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        x: Tensor,
        cos: Tensor,
        signed_sin: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        ctx.dtype = x.dtype
        return _rotated(x, cos, signed_sin).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        cos, signed_sin = ctx.saved_tensors
        # The transpose of x -> roll(x) s is g -> roll(g s) = roll(g) roll(s).
        back = signed_sin.roll(signed_sin.shape[-1] // 2, -1)
        return _rotated(grad, cos, back).to(ctx.dtype), None, None, None


def _rotated(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    wide = x.float()
    rolled = wide.roll(wide.shape[-1] // 2, -1)
    return (wide * cos).add_(rolled.mul_(signed_sin))


class _Gated(torch.autograd.Function):
    """The gate; it keeps its two inputs, and not the activation."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_up = functional.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), d_up
