"""A decoder layer of the Llama and Qwen families, shared by training and sampling.

`live_layers` uses the model's own parameters, so gradients reach the tensors that the optimiser
and the file formats know. `packed_layers` makes a copy for sampling, with adapters merged, weights
cast once instead of at every step, and stored in the layout that the CPU's kernels prefer. `trunk`
runs either. Attention differs between the two and is in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from orbiter.train.engine.arithmetic import Linear, packed_linear
from orbiter.train.engine.forward.pointwise import gated, rms_norm, rotate

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Maps a layer's number and its rotated queries, keys, values [N heads D] to [N heads*D]."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an architecture's attention, and the epsilon of its norms."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @classmethod
    def of(cls, config: Any) -> Shape:  # noqa: ANN401 - every family has a different config class
        """Read the shape from a Hugging Face config."""
        heads: int = config.num_attention_heads
        return cls(
            heads=heads,
            kv_heads=config.num_key_value_heads,
            # Some families fix the head size apart from hidden_size / heads (Qwen3); others leave
            # it out.
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            eps=config.rms_norm_eps,
        )


class Layer(NamedTuple):
    """One decoder layer: two norms and four products, whose inputs are normalised states [N H]."""

    attention_norm: Tensor
    qkv: Linear
    """Queries, keys and values in one product, [N (heads + 2 kv_heads)*D]."""
    head_norms: tuple[Tensor, Tensor] | None
    """Qwen3's norms of queries and keys; None in other families."""
    out: Linear
    mlp_norm: Tensor
    gate_up: Callable[[Tensor], tuple[Tensor, ...]]
    """Gate and up projections, each [N I]."""
    down: Linear


class Rotary(NamedTuple):
    """Rotary position embedding of N tokens, in float32."""

    cos: Float[Tensor, "N 1 D"]
    signed_sin: Float[Tensor, "N 1 D"]
    """Sine with its first half negated, so that a roll can replace rotate-half."""

    def at(self, position: Int[Tensor, "N"]) -> Rotary:
        """Return the table's rows for these positions."""
        return Rotary(self.cos[position], self.signed_sin[position])

    def turn(self, x: Float[Tensor, "N heads D"], dtype: torch.dtype) -> Tensor:
        """Rotate queries or keys by their positions, and return them in `dtype`."""
        return rotate(x, self.cos, self.signed_sin, dtype)


@torch.no_grad()
def rotary_table(body: Any, positions: int) -> Rotary:  # noqa: ANN401 - as in Shape.of
    """Compute the rotation at each position with Hugging Face's own module."""
    weight = body.embed_tokens.weight
    index = torch.arange(positions, device=weight.device)[None]
    # Using the module itself keeps the scalings of linear, Llama 3 and YaRN exactly as trained.
    cos, sin = body.rotary_emb(weight[:1].float(), index)
    # rotate_half(x) * sin = roll(x) * signed_sin: a roll needs no concatenation.
    half = sin.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    return Rotary(cos[0, :, None], signed[0, :, None])


def trunk(
    layers: Sequence[Layer],
    x: Float[Tensor, "N H"],
    shape: Shape,
    *,
    rotary: Rotary,
    attend: Attend,
    dtype: torch.dtype,
    wanted: Int[Tensor, "M"] | None = None,
) -> Float[Tensor, "M H"]:
    """Run all layers over N packed tokens; the residual stream stays in float32.

    Only the states of the `wanted` tokens are returned; None means all. The last layer computes
    just these: of the other tokens it needs no more than keys and values.
    """
    turned = shape.heads + shape.kv_heads
    for number, layer in enumerate(layers):
        # Norms and the residual stream stay in float32; only the products run in `dtype`.
        h = rms_norm(x, layer.attention_norm, shape.eps, dtype)
        h = layer.qkv(h).view(len(x), -1, shape.head_dim)
        qk, v = h.split([turned, shape.kv_heads], dim=1)
        if layer.head_norms is not None:
            q, k = qk.split([shape.heads, shape.kv_heads], dim=1)
            q_norm, k_norm = layer.head_norms
            # Qwen3 normalises each head before the rotation, over head_dim only.
            q, k = (
                rms_norm(part, norm, shape.eps, torch.float32)
                for part, norm in ((q, q_norm), (k, k_norm))
            )
            qk = torch.cat([q, k], dim=1)
        # Queries and keys are rotated together, in one kernel instead of two.
        qk = rotary.turn(qk, dtype)
        q, k = qk.split([shape.heads, shape.kv_heads], dim=1)
        if wanted is not None and number + 1 == len(layers):
            q, x = q.index_select(0, wanted), x.index_select(0, wanted)
        # `attend` returns `dtype`; adding it to x promotes the sum to float32.
        x = x + layer.out(attend(number, q, k, v))
        h = rms_norm(x, layer.mlp_norm, shape.eps, dtype)
        gate, up = layer.gate_up(h)
        x = x + layer.down(gated(gate, up))
    return x


def live_layers(body: Any, dtype: torch.dtype) -> list[Layer]:  # noqa: ANN401 - as in Shape.of
    """Return the layers over the model's own parameters and adapters, which receive gradients."""

    def fuse(modules: list[nn.Module]) -> Linear:
        return _live_linear(modules, dtype)

    def apart(modules: list[nn.Module]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        # Joining both weights would copy their gradients in backward, which costs more than it
        # saves.
        parts = [_live_linear([module], dtype) for module in modules]
        return lambda x: tuple(part(x) for part in parts)

    return [_layer(block, fuse, apart) for block in body.layers]


@torch.no_grad()
def packed_layers(body: Any, dtype: torch.dtype) -> list[Layer]:  # noqa: ANN401 - as in Shape.of
    """Copy the layers into packed weights for sampling."""

    def fuse(modules: list[nn.Module]) -> Linear:
        return packed_linear(*merged(modules), dtype)

    def halves(modules: list[nn.Module]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        # Without gradients one product for both halves is faster than two.
        both = fuse(modules)
        return lambda x: both(x).chunk(2, dim=-1)

    return [_layer(block, fuse, halves) for block in body.layers]


def _layer(
    block: Any,  # noqa: ANN401 - as in Shape.of
    fuse: Callable[[list[nn.Module]], Linear],
    pair: Callable[[list[nn.Module]], Callable[[Tensor], tuple[Tensor, ...]]],
) -> Layer:
    """Make a layer from a Hugging Face block; `fuse` and `pair` turn modules into products."""
    attention, mlp = block.self_attn, block.mlp
    norms = None
    if hasattr(attention, "q_norm"):
        norms = (attention.q_norm.weight, attention.k_norm.weight)
    return Layer(
        attention_norm=block.input_layernorm.weight,
        qkv=fuse([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norms=norms,
        out=fuse([attention.o_proj]),
        mlp_norm=block.post_attention_layernorm.weight,
        gate_up=pair([mlp.gate_proj, mlp.up_proj]),
        down=fuse([mlp.down_proj]),
    )


class LoraAdapter(NamedTuple):
    """A LoRA adapter: W + scale * B A."""

    a: Float[Tensor, "r in"]
    b: Float[Tensor, "out r"]
    scale: float


def _adapters(module: Any) -> Iterator[LoraAdapter]:  # noqa: ANN401 - peft's classes, or torch's own
    """Yield the active adapters of a module in peft's layout; a plain layer has none."""
    # Disabled adapters are how the frozen reference is read from the same model.
    if not hasattr(module, "lora_A") or module.disable_adapters:
        return
    for name in module.active_adapters:
        yield LoraAdapter(
            module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
        )


def _base(module: Any) -> nn.Linear:  # noqa: ANN401 - peft's classes, or torch's own
    """Return the linear layer that an adapter wraps, or the module itself."""
    linear: nn.Linear = module.base_layer if hasattr(module, "lora_A") else module
    return linear


def _biases(modules: Sequence[nn.Module]) -> Tensor | None:
    """Join the biases of layers that share their input; None if they have no bias."""
    biases: list[Tensor] = [_base(module).bias for module in modules]
    # All of them or none: the families here never mix layers with and without biases.
    return None if any(bias is None for bias in biases) else torch.cat(biases)


def _live_linear(modules: Sequence[nn.Module], dtype: torch.dtype) -> Linear:
    """Return one product with several layers' own weights, in `dtype`, plus their adapters."""
    bases = [_base(module) for module in modules]
    adapters = [list(_adapters(module)) for module in modules]
    # A cast that autograd follows, so the gradient arrives at the float32 master weight.
    weights = [base.weight.to(dtype) for base in bases]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = _biases(modules)
    bias = None if bias is None else bias.to(dtype)

    def plain(x: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    def adapted(x: Tensor) -> Tensor:
        parts = list(plain(x).split([len(w) for w in weights], dim=-1))
        for index, of_layer in enumerate(adapters):
            for a, b, scale in of_layer:
                # B(Ax), not (BA)x: the product of two thin matrices is never formed.
                # The adapters' own weights stay float32 in the optimiser, as the base weights do.
                low = functional.linear(x, a.to(dtype)) * scale
                parts[index] = torch.addmm(parts[index], low, b.to(dtype).t())
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    return adapted if any(adapters) else plain


def merged(modules: Sequence[nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Return the joined weight and bias of layers that share their input, with adapters merged."""
    weights: list[Tensor] = []
    for module in modules:
        weight: Tensor = _base(module).weight
        # Merged in float32, before the cast, or small updates would be rounded away.
        for a, b, scale in _adapters(module):
            weight = torch.addmm(weight, b, a, alpha=scale)
        weights.append(weight)
    return weights[0] if len(weights) == 1 else torch.cat(weights), _biases(modules)
