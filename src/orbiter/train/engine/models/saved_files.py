"""Check the files of a saved model before a library reads them: present, plain, complete.

A damaged model must be an error that names the file and the tensor, not random weights. Only the
headers of weight files are read here, so a check takes milliseconds; the values are checked after
loading (`pretrained.py`). The format is https://huggingface.co/docs/safetensors: eight bytes with
the header's length, a JSON header with type, shape and offsets of every tensor, then the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orbiter.train.contained import is_name_inside
from orbiter.train.engine.models.folder import MANIFEST, verify_file
from orbiter.train.errors import StorageError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
JSON_FILES = (
    CONFIG,
    ADAPTER_CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files that must hold a JSON object if they are present."""
READ = (".json", ".safetensors", ".model", ".jinja", ".txt")
"""Suffixes of the files that loading a model may read."""
LARGEST_HEADER = 100 << 20
"""The largest header of a weight file, in bytes; the format's limit."""
LARGEST_JSON = 16 << 20
"""The largest configuration file, in bytes; real ones have a few thousand."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one number by the format's name of its type."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that need no quantisation settings to be read."""


class StoredTensor(NamedTuple):
    """One tensor as the header of its file describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def check_model_files(folder: Path) -> dict[str, StoredTensor]:
    """Check the files of a saved model, and return its stored tensors by name.

    Raises:
        StorageError: a file is missing, empty, a Git LFS pointer, truncated, or not a plain file;
            names the file, and the tensor if one is affected.
    """
    check_plain_files(folder)
    config = read_object(folder / CONFIG)
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder, config):
        tensors |= read_header(path)
    if index := _index(folder, config):
        _check_index(index, tensors)
    if not tensors:
        raise StorageError(f"{folder / WEIGHTS} holds no tensors; save or download it again")
    _check_types(tensors, quantised="quantization_config" in config)
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(tensors):
        raise StorageError(
            f"{folder / CONFIG} asks for num_hidden_layers={layers}, and the weights hold only "
            f"{len(tensors)} tensors; the two do not belong together"
        )
    _check_manifest({tensor.file for tensor in tensors.values()})
    return tensors


def check_plain_files(folder: Path) -> None:
    """Check every file of a folder that loading a model may read.

    Links are followed, because the hub's cache consists of links.

    Raises:
        StorageError: one is a device, a pipe, a broken link, empty, or a Git LFS pointer, or a
            configuration is not a JSON object.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in READ or path.is_dir():
            continue
        if not path.is_file():
            raise StorageError(f"{path} is not a plain file (a device, a pipe or a broken link)")
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise StorageError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in "
                f"{folder}, or download the model again"
            )
        if not start and path.suffix != ".txt":
            raise StorageError(f"{path} is empty; save or download it again")
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_object(folder / name)


def read_object(path: Path) -> dict[str, Any]:
    """Read a configuration: a JSON object.

    Raises:
        StorageError: the file is missing, too large, or holds something else.
    """
    try:
        with path.open("rb") as file:
            # One byte more than allowed, so that a larger file is noticed without reading all of
            # it.
            raw = file.read(LARGEST_JSON + 1)
        if len(raw) > LARGEST_JSON:
            raise StorageError(f"{path} has more than {LARGEST_JSON:,} bytes, too many to be one")
        document = json.loads(raw.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise StorageError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document


def names_classifier(config: Mapping[str, Any]) -> bool:
    """Return whether a model's configuration is that of a sequence classifier."""
    named = config.get("architectures")
    listed = named if isinstance(named, list) else []
    return any(str(each).endswith("ForSequenceClassification") for each in listed)


def holds_reward_model(folder: Path) -> bool:
    """Return whether a folder holds a sequence classifier; False if it is no folder."""
    path = folder / CONFIG
    return path.is_file() and names_classifier(read_object(path))


def refuse_reward_model(folder: Path) -> None:
    """Refuse a reward model where a model that writes answers is needed.

    Raises:
        StorageError: the folder holds a reward model, or another sequence classifier.
    """
    if holds_reward_model(folder):
        raise StorageError(
            f"{folder} holds a reward model, which scores answers and writes none; use it as a "
            "reward, RewardSpec(name, fn=RewardModel(folder)), measure it with `orbiter-train "
            "eval --model FOLDER --data PAIRS`, or name a language model here"
        )


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Return the files with the weights, in the order in which Transformers looks for them.

    Raises:
        StorageError: no file holds weights, the index is damaged, or it names a file that is
            missing or outside the folder.
    """
    # Transformers reads this name from the config before it looks for the usual ones.
    named = config.get("transformers_weights")
    if named is not None and not str(named).endswith(".index.json"):
        return [_inside(folder, named, folder / CONFIG)]
    if named is None and (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = _index(folder, config)
    if index is None:
        present = sorted(path.name for path in folder.iterdir())
        pickled = [name for name in present if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        raise StorageError(
            f"cannot load {folder}: it holds neither {WEIGHTS} nor {INDEX}"
            + (
                f"; {pickled[0]} is a pickle, which could run code, and is never read: convert it "
                "to safetensors"
                if pickled
                else f"; it holds {', '.join(present[:8])}"
            )
        )
    names = dict.fromkeys(_weight_map(index).values())
    return [_inside(folder, name, index) for name in names]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return what a weight file holds, after checking that all of it is there.

    Raises:
        StorageError: the file is missing, truncated, or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            # From the open file, so that size and content belong to the same file even if it is
            # replaced.
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(LARGEST_HEADER, size - 8):
                raise StorageError(
                    f"{path} is truncated or not a safetensors file: it has {size:,} bytes, and "
                    f"its "
                    f"header alone should have {length:,}; save or download it again"
                )
            header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} has a damaged header: {error}") from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(header, dict):
        raise StorageError(f"{path} has a damaged header: it is not a JSON object")
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    _check_spans(path, spans, size - 8 - length)
    return {
        name: StoredTensor(path, entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Return where a tensor's data begins and ends, after checking its entry in the header."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            bits = BITS.get(dtype)
            whole = all(isinstance(n, int) and n >= 0 for n in shape)
            # The declared size must match exactly, or loading would read bytes of the next
            # tensor.
            if bits and whole and (end - begin) * 8 == bits * math.prod(shape) and begin >= 0:
                return begin, end
    raise StorageError(f"{path}: tensor {name!r} has a damaged entry in the header: {entry!r:.200}")


def _check_spans(path: Path, spans: Mapping[str, tuple[int, int]], available: int) -> None:
    """Check that the tensors' data lies without gap or overlap in the file, up to its end."""
    expected = 0
    # In order of their offsets, so that each must begin where the one before ends.
    for name, (begin, end) in sorted(spans.items(), key=lambda each: each[1]):
        if begin != expected:
            raise StorageError(
                f"{path}: tensor {name!r} begins at byte {begin:,} of the data and should begin at "
                f"{expected:,}: the header is damaged"
            )
        if end > available:
            raise StorageError(
                f"{path} is truncated: tensor {name!r} ends at byte {end:,} of the data, and the "
                f"file has {available:,}; save or download it again"
            )
        expected = end
    if expected != available:
        raise StorageError(
            f"{path} has {available - expected:,} bytes after its last tensor: it is damaged"
        )


def _check_types(tensors: Mapping[str, StoredTensor], *, quantised: bool) -> None:
    # Quantised weights are integers by design and come with settings that say how to read them.
    for name, tensor in () if quantised else tensors.items():
        if name.endswith(".weight") and tensor.dtype not in FLOATS:
            raise StorageError(
                f"{tensor.file}: tensor {name!r} has type {tensor.dtype}, and the config names no "
                f"quantisation; weights must be one of {', '.join(FLOATS)}"
            )


def _check_manifest(files: set[Path]) -> None:
    """Compare weights that this package saved with the manifest that was written with them."""
    for path in sorted(files):
        if (path.parent / MANIFEST).is_file():
            verify_file(path)


def _index(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Return the index of sharded weights, if the model has one."""
    named = config.get("transformers_weights")
    if named is not None:
        is_index = str(named).endswith(".index.json")
        return _inside(folder, named, folder / CONFIG) if is_index else None
    index = folder / INDEX
    return index if index.is_file() and not (folder / WEIGHTS).is_file() else None


def _weight_map(index: Path) -> dict[str, str]:
    mapped = read_object(index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise StorageError(f"{index} has no weight_map, which names the file of each tensor")
    for tensor, name in mapped.items():
        if not isinstance(name, str):
            raise StorageError(f"{index}: the file of tensor {tensor!r} is {name!r}, not a name")
    return mapped


def _check_index(index: Path, tensors: Mapping[str, StoredTensor]) -> None:
    for tensor, name in _weight_map(index).items():
        if tensor not in tensors or tensors[tensor].file.name != Path(name).name:
            raise StorageError(
                f"{index} says that tensor {tensor!r} is in {name}, and it is not; download the "
                "model again"
            )


def _inside(folder: Path, name: object, source: Path) -> Path:
    """Return a file that a configuration names, if it is in the folder."""
    if not is_name_inside(name):  # a link may leave it, as in the cache of the hub
        raise StorageError(f"{source} names {name!r}, which is not a file inside its folder")
    path = folder / str(name)
    if not path.is_file():
        raise StorageError(f"{source} names {name}, which is missing; download the model again")
    return path


def layer_number(name: str) -> int | None:
    """Return the number in a tensor's name, which is its layer: 3 for `model.layers.3.mlp`."""
    return next(_numbers(name), None)


def _numbers(name: str) -> Iterator[int]:
    return (int(part) for part in name.split(".") if part.isdecimal())
