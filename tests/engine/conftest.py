"""Random small models of every family, as policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.policy import Policy, make_policy

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
GPT2 = transformers.GPT2Config(
    vocab_size=259, n_embd=64, n_layer=2, n_head=4, n_positions=256, eos_token_id=257
)
FAMILIES: dict[str, tuple[type, Any]] = {
    "llama": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    ),
    "qwen2": (
        transformers.Qwen2ForCausalLM,
        transformers.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    ),
    "qwen3": (
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=32),
    ),
    "gemma": (
        transformers.GemmaForCausalLM,
        transformers.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16),
    ),
    "gemma2": (
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=8),
    ),
    "gpt2": (transformers.GPT2LMHeadModel, GPT2),
}


def make_family(name: str, seed: int = 0) -> Any:  # noqa: ANN401 - a class for each family
    """Build a random model whose answers are neither flat nor certain."""
    kind, config = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


MakePolicy = Callable[..., Policy]


@pytest.fixture
def policy_of() -> MakePolicy:
    """Return the maker of policies over random models, by family."""

    def make(family: str = "llama", **knobs: Any) -> Policy:  # noqa: ANN401 - make_policy's
        return make_policy(make_family(family), tiny_tokenizer(), device="cpu", **knobs)

    return make


@pytest.fixture
def randomised() -> Callable[[Policy], Policy]:
    """Return what moves a policy's trained weights, so that adapters do something."""

    def move(policy: Policy) -> Policy:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.named_trainable().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return policy

    return move
