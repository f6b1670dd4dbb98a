"""Tiny random models of the architectures that transformers has, made from configurations."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SMALL: dict[str, Any] = {
    "vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "emb_dim",
         "lru_width"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_heads_kv", "num_kv_heads"), 2),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 128),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts_per_tok", "n_group_", "decoder_layers"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("head_dim", "v_head_dim", "attention_head_dim", "kv_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 4),
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "q_lora_rank": 16, "sliding_window": 16,
    "state_size": 8, "mamba_d_state": 8,
}  # fmt: skip
"""Sizes by the names that configurations give them."""
OPTIONAL = ("head_dim", "sliding_window", "n_inner", "num_key_value_heads")
"""Sizes that are left alone where a configuration has None: they then follow from others."""


def model_types() -> list[str]:
    """Return every model type that transformers loads as a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:  # noqa: ANN401 - transformers'
    """Return a small configuration of a model type."""
    kind = CONFIG_MAPPING[model_type]
    if "text_config" in getattr(kind, "sub_configs", {}):
        return kind(text_config=_small(type(kind().text_config)).to_dict())
    return _small(kind)


def _small(kind: Any) -> Any:  # noqa: ANN401 - transformers'
    usual = kind()
    sizes = {
        name: size
        for name, size in SMALL.items()
        if hasattr(usual, name) and not (name in OPTIONAL and getattr(usual, name) is None)
    }
    return kind(**sizes)


def tiny_model_of(model_type: str) -> Any:  # noqa: ANN401 - transformers'
    """Return a random model whose answers are neither flat nor certain."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    name = names if isinstance(names, str) else names[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, name)(tiny_config(model_type)).eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.1)
    return model
