"""Which architectures the engine can train, and the context length of each.

Any decoder of transformers whose layers attend to cached keys and values works. Layers that keep a
running state instead (Mamba, RWKV, linear attention) do not: in sampling, rows of different lengths
share a batch and leave it one by one, which such a state cannot follow. `docs/engine.md` has the
table; `forward/generic.py` checks every other model on a probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orbiter.train.errors import ConfigError

ATTENTION = frozenset({"full_attention", "sliding_attention", "attention", "global", "local"})
"""Kinds of layers, as configurations name them, that the engine can sample from."""
STATEFUL = frozenset({"rwkv", "minimax", "lfm2", "lfm2_moe", "mamba", "mamba2", "xlstm"})
"""Model types with a running state that their classes do not declare."""
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "context_length",
)
"""The names under which configurations give the context length."""
UNBOUNDED = 1 << 20
"""Context length of a model whose configuration sets none, in tokens."""


def context_of(config: Any) -> int:  # noqa: ANN401 - transformers' configurations differ
    """Return the largest number of tokens of prompt and answer together."""
    text = _text_config(config)
    for name in LENGTHS:
        length = getattr(text, name, None)
        # Some configurations hold None or a placeholder such as -1.
        if isinstance(length, int) and length > 0:
            return length
    return UNBOUNDED  # such as Bloom, whose positions are distances


def require_supported(model: Any) -> None:  # noqa: ANN401 - transformers'
    """Refuse an architecture that the engine cannot train.

    Raises:
        ConfigError: names the architecture and the reason.
    """
    reason = why_unsupported(model)
    if reason is not None:
        refuse(model, reason)


def refuse(model: Any, reason: str) -> None:  # noqa: ANN401 - transformers'
    """Raise the error that names an architecture which cannot be trained.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        f"{type(model).__name__} (model type {model.config.model_type!r}) cannot be trained by the "
        f"local engine: {reason}; docs/engine.md lists which architectures can"
    )


def why_unsupported(model: Any) -> str | None:  # noqa: ANN401 - transformers'
    """Return why a model cannot be trained, from its class and configuration; None if it may."""
    config = _text_config(model.config)
    kinds = getattr(config, "layer_types", None)
    # Old configurations have no layer_types; for them only the class and type decide.
    odd = sorted({*kinds} - ATTENTION) if isinstance(kinds, Sequence) else []
    if getattr(model, "_is_stateful", False) or config.model_type in STATEFUL:
        return "its layers keep a running state instead of keys and values"
    if odd:
        return f"it has layers of the kind {', '.join(map(str, odd))}"
    if getattr(model.config, "is_encoder_decoder", False):
        return "it has an encoder"
    return None


def _text_config(config: Any) -> Any:  # noqa: ANN401 - as above
    """Return the part of a configuration that is about the language model."""
    get = getattr(config, "get_text_config", None)
    # Models for text and images keep the language model's settings in a nested config.
    return config if get is None else get()
