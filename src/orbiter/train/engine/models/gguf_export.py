"""Write a model as one GGUF file for llama.cpp and Ollama: Llama, Qwen 2 and Qwen 3.

The names of tensors and metadata are those of llama.cpp's convert_hf_to_gguf.py,
https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from orbiter.train.engine.models.gguf_file import BLOCK, QuantType, Tensor, Value, write_gguf
from orbiter.train.engine.models.gguf_names import INSIDE, OUTSIDE
from orbiter.train.engine.models.gguf_tokenizer import tokenizer_metadata
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.turn_end import configured_stops, stop_token_ids
from orbiter.train.errors import ConfigError, StorageError, TrainingError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

GgufType = Literal["f16", "q8_0"]
_FILE_TYPES: Mapping[str, int] = {"f16": 1, "q8_0": 7}
_MATRIX: Mapping[str, QuantType] = {"f16": "F16", "q8_0": "Q8_0"}
FAMILIES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""The architectures that can be written, and llama.cpp's name of each."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_gguf` has written."""

    path: Path
    architecture: str
    """llama.cpp's name of the architecture."""
    type: GgufType
    tensors: int
    bytes: int


def export_gguf(
    model: str | os.PathLike[str], path: str | os.PathLike[str], *, type: GgufType = "f16"
) -> Exported:
    """Write a model with its tokenizer and chat template as one GGUF file.

    Args:
        model: "smollm2-135m", a folder, an adapter's folder (merged into its base), or a name on
            the hub.
        path: The file to create; it must end in .gguf. An existing one is replaced.
        type: "f16" writes matrices as 16-bit numbers, "q8_0" as 8-bit ones with a scale for every
            32. Vectors stay in float32.

    Raises:
        ConfigError: the architecture, its rotary embedding or its tokenizer cannot be written; the
            message names it.
        StorageError: the model cannot be loaded, or the file cannot be written.
        TrainingError: a weight is not finite, or too large for 16 bits.
    """
    if type not in get_args(GgufType):
        raise ConfigError(
            f"type must be 'f16' or 'q8_0', got {type!r}{did_you_mean(type, _MATRIX)}"
        )
    target = Path(path)
    if target.suffix != ".gguf":
        raise ConfigError(f"a GGUF file must end in .gguf, got {target}")
    if target.is_dir():
        raise StorageError(f"{target} is a folder; name a file in it")
    loaded = load_model(model, device="cpu")
    return export_loaded(
        loaded.model, loaded.tokenizer, target, type=type, name=Path(loaded.name).name
    )


def export_loaded(
    model: Any,  # noqa: ANN401 - transformers'
    tokenizer: Any,  # noqa: ANN401 - transformers'
    path: Path,
    *,
    type: GgufType,
    name: str,
) -> Exported:
    """Write a loaded model; see `export_gguf`."""
    kind = model.__class__.__name__
    if kind not in FAMILIES:
        raise ConfigError(
            f"{kind} (model type {model.config.model_type!r}) cannot be written as GGUF, only "
            f"{', '.join(FAMILIES)}; llama.cpp's convert_hf_to_gguf.py has further architectures"
        )
    architecture = FAMILIES[kind]
    # The tokens that end a turn may be named by the configuration, the tokenizer, or only the
    # template.
    stops = stop_token_ids(tokenizer) | configured_stops(model)
    metadata: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": name,
        "general.file_type": _FILE_TYPES[type],
        "general.quantization_version": 2,
        **_sizes(model.config, architecture),
        **tokenizer_metadata(tokenizer, model.config.vocab_size, stops),
    }
    tensors = [*_rotary(model, architecture), *_tensors(model, architecture, _MATRIX[type])]
    write_gguf(path, metadata, tensors)
    return Exported(path, architecture, type, len(tensors), path.stat().st_size)


def _sizes(config: Any, architecture: str) -> dict[str, Value]:  # noqa: ANN401 - transformers'
    if getattr(config, "use_sliding_window", False):
        raise ConfigError(
            "sliding-window attention cannot be written as GGUF for this architecture"
        )
    heads = config.num_attention_heads
    # llama.cpp cannot derive a head size that differs from hidden_size / heads.
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": config.num_key_value_heads or heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head,
        **_rope(config),
    }
    return {f"{architecture}.{name}": value for name, value in sizes.items()}


def _rope(config: Any) -> dict[str, Value]:  # noqa: ANN401 - transformers'
    """Return the metadata of the rotary embedding; Llama 3's factors are a tensor."""
    rope = dict(config.rope_parameters)
    kind = rope.get("rope_type", "default")
    base: dict[str, Value] = {"rope.freq_base": float(rope["rope_theta"])}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("a partly rotated head (partial_rotary_factor) cannot be written as GGUF")
    if kind in ("default", "llama3"):
        return base
    if kind == "linear":
        return {**base, "rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    known = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    # Further YaRN parameters would be dropped silently and change every position.
    further = sorted(k for k, v in rope.items() if k not in known and v not in (None, 1.0, True))
    if kind == "yarn" and not further:
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        return {
            **base,
            "rope.scaling.type": kind,
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(original),
        }
    extra = f" with {', '.join(further)}" if kind == "yarn" else ""
    raise ConfigError(
        f"rope scaling {kind!r}{extra} cannot be written as GGUF, only default, linear, llama3 and "
        "plain yarn"
    )


def _rotary(model: Any, architecture: str) -> list[Tensor]:  # noqa: ANN401 - transformers'
    """Return the tensor of Llama 3's factors: how much slower each pair of a head rotates."""
    rope = model.config.rope_parameters
    if rope.get("rope_type", "default") != "llama3":
        return []
    if architecture != "llama":
        raise ConfigError(f"rope scaling 'llama3' cannot be written for {architecture} as GGUF")
    factors = llama3_factors(rope, _head_size(model.config))
    return [Tensor("rope_freqs.weight", (len(factors),), "F32", lambda: _array(factors))]


def _array(values: list[float]) -> NDArray[np.float32]:
    import numpy as np

    return np.array(values, np.float32)


def _head_size(config: Any) -> int:  # noqa: ANN401 - transformers'
    head = getattr(config, "head_dim", None)
    return int(head or config.hidden_size // config.num_attention_heads)


def llama3_factors(rope: Mapping[str, Any], head: int) -> list[float]:
    """Return by how much each frequency is divided: short waves by 1, long ones by the factor."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, length = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    factors = []
    for pair in range(0, head, 2):
        # Wavelength of this pair in tokens, as in transformers' _compute_llama3_parameters.
        wave = 2 * math.pi * float(rope["rope_theta"]) ** (pair / head)
        if wave < length / high:
            factors.append(1.0)
        elif wave > length / low:
            factors.append(factor)
        else:
            share = (length / wave - low) / (high - low)
            factors.append(1 / ((1 - share) / factor + share))
    return factors


def _tensors(model: Any, architecture: str, matrix: QuantType) -> Iterator[Tensor]:  # noqa: ANN401
    config = model.config
    tied = config.tie_word_embeddings
    # llama.cpp rotates neighbouring rows for Llama, and rows half a head apart for Qwen.
    heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": config.num_key_value_heads or config.num_attention_heads,
    }
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            # llama.cpp takes the embedding as the head if the file has no output.weight.
            continue
        theirs, part = _name(name)
        permuted = heads.get(part) if architecture == "llama" else None
        kind: QuantType = "F32" if weight.ndim == 1 else matrix
        if kind == "Q8_0" and weight.shape[-1] % BLOCK:
            kind = "F16"  # its rows are no whole number of blocks

        # Bound as defaults: a closure would see the loop's last values, since it is called later.
        def make(
            weight: torch.Tensor = weight,
            permuted: int | None = permuted,
            name: str = name,
            kind: QuantType = kind,
        ) -> NDArray[np.float32]:
            return _numbers(weight, permuted, name, kind)

        yield Tensor(theirs, tuple(weight.shape), kind, make)


def _name(name: str) -> tuple[str, str]:
    """Return llama.cpp's name of a tensor, and of its part of a layer.

    Raises:
        ConfigError: it has none.
    """
    if name == "lm_head.weight":
        return "output.weight", ""
    layer = _LAYER.fullmatch(name)
    if layer is not None and layer[2] in INSIDE:
        part = INSIDE[layer[2]]
        return f"blk.{layer[1]}.{part}.{layer[3]}", part
    outside = name.removeprefix("model.").removesuffix(".weight")
    if outside in OUTSIDE:
        return f"{OUTSIDE[outside]}.weight", ""
    raise ConfigError(f"the tensor {name} has no name in GGUF, so the model cannot be written")


def _numbers(
    weight: torch.Tensor, heads: int | None, name: str, kind: QuantType
) -> NDArray[np.float32]:
    import numpy as np

    numbers: NDArray[np.float32] = weight.detach().float().cpu().numpy()
    # Also the scale of a block of Q8_0 is a 16-bit number.
    largest = float(np.abs(numbers).max(initial=0.0))
    # 65504 is the largest finite float16; a block of Q8_0 stores its largest value / 127.
    limit = {"F32": math.inf, "F16": 65504.0, "Q8_0": 65504.0 * 127}[kind]
    if not largest <= limit or math.isinf(largest):
        raise TrainingError(f"{name} holds {largest}, which cannot be written as {kind}")
    return numbers if heads is None else interleaved(numbers, heads)


def interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Put the two rows of each rotated pair side by side; Hugging Face has them half a head apart.

    The inverse of what `gguf.py` does on reading. A bias has one number for each row.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
