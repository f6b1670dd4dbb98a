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
    **dict.fromkeys(("num_experts_per_tok", "decoder_layers"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(
        ("head_dim", "v_head_dim", "attention_head_dim", "kv_lora_rank", "qk_rope_head_dim",
         "qk_nope_head_dim"), 8),
    "rotary_dim": 4,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "q_lora_rank": 16, "sliding_window": 16,
    "state_size": 8, "mamba_d_state": 8,
}  # fmt: skip
"""Sizes by the names that configurations give them."""
OPTIONAL = ("head_dim", "sliding_window", "n_inner", "num_key_value_heads")
"""Sizes that follow from others in many configurations."""
LARGEST = 3_000_000
"""Parameters of a model that is still tiny."""


def model_types() -> list[str]:
    """Return every model type that transformers loads as a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model_of(model_type: str) -> Any:  # noqa: ANN401 - transformers'
    """Return a random model whose answers are neither flat nor certain."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    kind = getattr(transformers, names if isinstance(names, str) else names[0])
    config = _tiny_config(CONFIG_MAPPING[model_type], kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.1)
    return model


def _tiny_config(kind: Any, model: Any) -> Any:  # noqa: ANN401 - transformers'
    """Return the first small configuration of a kind from which a small model can be made."""
    problem: Exception = ValueError("no size of this configuration is known")
    for left_out in ("none", "absent", "optional"):
        try:
            config = _small(kind, left_out)
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in model(config).parameters())
        except Exception as error:  # a configuration may refuse sizes in any way
            problem = error
            continue
        if size <= LARGEST:
            return config
    raise problem


def _small(kind: Any, left_out: str) -> Any:  # noqa: ANN401 - transformers'
    usual = kind()
    if "text_config" in getattr(kind, "sub_configs", {}):
        return kind(text_config=_small(type(usual.text_config), left_out).to_dict())
    sizes: dict[str, Any] = {}
    for name, size in SMALL.items():
        value = _value(usual, name)
        absent = value is None and left_out == "absent"
        if value is not ... and not (name in OPTIONAL and (absent or left_out == "optional")):
            sizes[name] = size
    if "kv_lora_rank" in sizes:  # every head has keys of its own
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return kind(**sizes)


def _value(config: Any, name: str) -> object:  # noqa: ANN401 - transformers'
    """Return a size of a configuration; ... if it has none."""
    try:
        return getattr(config, name, ...)
    except Exception:  # some differ from layer to layer and refuse to say one
        return ...
