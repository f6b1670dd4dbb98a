"""A damaged model is an error with file and tensor, never random weights or a foreign exception."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from orbiter.train.engine.models.folder import staged_folder
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.models.outline import make_outline
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.errors import StorageError
from orbiter.train.verl.config import VeRLConfig
from tests.engine.conftest import SIZES

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], object]
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
LORA_A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
LORA_B = LORA_A.replace("lora_A", "lora_B")


class Models(NamedTuple):
    """Sound models to damage copies of."""

    model: Path
    sharded: Path
    adapter: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("sound")
    found = Models(root / "model", root / "sharded", root / "adapter")
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    )
    for folder, size in ((found.model, "1GB"), (found.sharded, "50KB")):
        model.save_pretrained(folder, max_shard_size=size)
        tiny_tokenizer().save_pretrained(folder)
    model.name_or_path = str(found.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name that PEFT still uses
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(found.adapter)
    return found


def load_all(folder: Path) -> None:
    """Load a model as training does, after the plan has looked at it."""
    make_outline(VeRLConfig(model=str(folder), device="cpu"), reference=True, value_head=False)
    load_model(folder, device="cpu")


def weights(change: Callable[[Tensors], object], name: str = WEIGHTS) -> Damage:
    """Rewrite the weights after a change."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return damage


def put(name: str, tensor: Callable[[torch.Tensor], torch.Tensor], file: str = WEIGHTS) -> Damage:
    return weights(lambda all: all.update({name: tensor(all[name]).contiguous()}), file)


def drop(*names: str, file: str = WEIGHTS) -> Damage:
    return weights(lambda all: [all.pop(name) for name in names], file)


def cut(name: str, length: int) -> Damage:
    """Cut a file to a length; a negative one counts from its end."""

    def damage(folder: Path) -> None:
        whole = (folder / name).stat().st_size
        os.truncate(folder / name, length if length >= 0 else whole + length)

    return damage


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda folder: _written(folder / name, content)


def _written(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def config(name: str = "config.json", /, **values: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(document | values))

    return damage


def header(change: Callable[[dict[str, Any]], object], file: str = WEIGHTS) -> Damage:
    """Change the header of a weight file and nothing else."""

    def damage(folder: Path) -> None:
        raw = (folder / file).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        document = json.loads(raw[8 : 8 + length])
        change(document)
        text = json.dumps(document).encode()
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return damage


def weight_map(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        document = json.loads(path.read_text())
        change(document["weight_map"])
        path.write_text(json.dumps(document))

    return damage


def first_shard(act: Callable[[Path], object]) -> Damage:
    return lambda folder: act(min(folder.glob("model-*.safetensors")))


def add_tokens(*tokens: str, special: bool) -> Damage:
    def damage(folder: Path) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.add_tokens(list(tokens), special_tokens=special)
        tokenizer.save_pretrained(folder)

    return damage


def poke(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


def fifo(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def link(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return damage


LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 540000000\n"
)
BAD_JSON: Mapping[str, bytes] = {
    "broken": b'{"model_type": "llama",',
    "an array": b"[1, 2]",
    "a number": b"7",
    "not UTF-8": b'{"model_type": "\xff"}',
    "deeply nested": b'{"a":' + b"[" * 100_000,
}

ON_MODEL: dict[str, tuple[Damage, str]] = {
    "weights cut in the data": (cut(WEIGHTS, -1000), r"model\.safetensors is trunc.*'model"),
    "weights cut by one byte": (cut(WEIGHTS, -1), r"model\.safetensors is truncated.*tensor '"),
    "weights cut in the header": (cut(WEIGHTS, 200), r"model\.safetensors is truncated"),
    "weights of seven bytes": (cut(WEIGHTS, 7), r"model\.safetensors is truncated"),
    "weights of no bytes": (cut(WEIGHTS, 0), r"model\.safetensors is empty"),
    "weights with a byte more": (
        lambda f: _written(f / WEIGHTS, (f / WEIGHTS).read_bytes() + b"\0"),
        "1 bytes after its last",
    ),
    "weights are a Git LFS pointer": (
        write(WEIGHTS, LFS),
        r"model\.safetensors is a Git LFS pointer",
    ),
    "weights are a web page": (
        write(WEIGHTS, b"<!DOCTYPE html><html></html>"),
        "not a safetensors file",
    ),
    "weights are a pickle": (
        both(lambda f: torch.save({}, f / "pytorch_model.bin"), gone(WEIGHTS)),
        r"pytorch_model\.bin is a pickle",
    ),
    "weights are missing": (gone(WEIGHTS), r"holds neither model\.safetensors nor"),
    "weights are a folder": (
        both(gone(WEIGHTS), lambda f: (f / WEIGHTS).mkdir()),
        r"holds neither model\.safetensors nor",
    ),
    "weights are a pipe": (fifo(WEIGHTS), r"model\.safetensors is not a plain file"),
    "weights link to nothing": (link(WEIGHTS, "gone"), r"model\.safetensors is not a plain file"),
    "weights link to a device": (
        link(WEIGHTS, "/dev/zero"),
        r"model\.safetensors is not a plain file",
    ),
    "weights hold no tensor": (weights(dict.clear), r"model\.safetensors holds no tensors"),
    "a layer is missing": (
        weights(lambda all: [all.pop(n) for n in [*all] if ".layers.1." in n]),
        r"9 tensors.*layers\.1\.",
    ),
    "one tensor is missing": (drop(Q_PROJ), f"1 tensors are missing.*{Q_PROJ}"),
    "the embedding is missing": (drop(EMBEDDING), f"tensors are missing.*{EMBEDDING}|lm_head"),
    "the final norm is missing": (drop("model.norm.weight"), r"missing.*model\.norm\.weight"),
    "a tensor has another name": (
        weights(lambda all: all.update({"x.weight": all.pop(Q_PROJ)})),
        f"missing.*{Q_PROJ}",
    ),
    "a tensor has rows too few": (
        put(Q_PROJ, lambda t: t[:-1]),
        rf"{Q_PROJ}' has shape \[63, 64\]",
    ),
    "a tensor is transposed": (
        put("model.layers.0.mlp.up_proj.weight", lambda t: t.T),
        r"up_proj\.weight' has shape \[64, 96\]",
    ),
    "a tensor has an axis more": (put(Q_PROJ, lambda t: t[None]), rf"{Q_PROJ}' has shape \[1, 64"),
    "a tensor is a number": (put(Q_PROJ, lambda t: t.sum()), rf"{Q_PROJ}' has shape \[\]"),
    "the embedding has rows too few": (
        put(EMBEDDING, lambda t: t[:200]),
        rf"{EMBEDDING}' has shape \[200, 64\]",
    ),
    "a weight is NaN": (
        put(Q_PROJ, poke(float("nan"))),
        f"{WEIGHTS}: tensor '{Q_PROJ}' holds 1 num",
    ),
    "a weight is infinite": (
        put(Q_PROJ, poke(float("inf"))),
        f"{WEIGHTS}: tensor '{Q_PROJ}' holds 1",
    ),
    "opposite infinities": (
        put(Q_PROJ, lambda t: poke(float("inf"))(t).index_fill_(0, torch.tensor([0]), -torch.inf)),
        f"tensor '{Q_PROJ}' holds",
    ),
    "all weights are NaN": (
        weights(lambda all: [t.fill_(float("nan")) for t in all.values()]),
        "NaN or infinite",
    ),
    "NaN in bfloat16": (
        put(Q_PROJ, lambda t: poke(float("nan"))(t).bfloat16()),
        f"'{Q_PROJ}' holds",
    ),
    "a norm is NaN": (
        put("model.norm.weight", poke(float("nan"))),
        r"model\.norm\.weight' holds 1",
    ),
    "weights are integers": (
        put(Q_PROJ, lambda t: t.long()),
        f"{WEIGHTS}: tensor '{Q_PROJ}' has type I64",
    ),
    "weights are bytes": (put(Q_PROJ, lambda t: t.to(torch.uint8)), f"'{Q_PROJ}' has type U8"),
    "weights are truth values": (put(Q_PROJ, lambda t: t > 0), f"'{Q_PROJ}' has type BOOL"),
    "weights are complex": (
        put(Q_PROJ, lambda t: t.to(torch.complex64)),
        f"'{Q_PROJ}' has type C64",
    ),
    "weights are bare 8-bit floats": (
        put(Q_PROJ, lambda t: t.to(torch.float8_e4m3fn)),
        f"'{Q_PROJ}' has type F8_E4M3",
    ),
    "header: an unknown type": (
        header(lambda h: h[Q_PROJ].update(dtype="F7")),
        f"{Q_PROJ}' has a damaged",
    ),
    "header: a negative axis": (
        header(lambda h: h[Q_PROJ].update(shape=[-1, 64])),
        f"{Q_PROJ}' has a dam",
    ),
    "header: a wrong shape": (
        header(lambda h: h[Q_PROJ].update(shape=[64, 65])),
        f"{Q_PROJ}' has a damaged",
    ),
    "header: an entry that is none": (
        header(lambda h: h.update({Q_PROJ: 5})),
        f"{Q_PROJ}' has a damaged",
    ),
    "header: two tensors overlap": (
        header(lambda h: h[Q_PROJ].update(data_offsets=[0, 64 * 64 * 4])),
        "the header is damaged",
    ),
    "header: data far away": (
        header(lambda h: h[Q_PROJ].update(data_offsets=[10**15, 10**15 + 64 * 64 * 4])),
        "begins? at byte",
    ),
    "header is no JSON": (
        lambda f: _written(f / WEIGHTS, (8).to_bytes(8, "little") + b"{not it}"),
        "damaged header",
    ),
    "header is an array": (
        lambda f: _written(f / WEIGHTS, (2).to_bytes(8, "little") + b"[]"),
        "damaged header",
    ),
    "header longer than the file": (
        lambda f: _written(f / WEIGHTS, (2**63).to_bytes(8, "little") + b"{}"),
        "is truncated or not a safe",
    ),
    **{
        f"config is {what}": (write("config.json", raw), r"config\.json (cannot be read|must hold)")
        for what, raw in BAD_JSON.items()
    },
    "config is empty": (write("config.json", b""), r"config\.json is empty"),
    "config is missing": (gone("config.json"), "is not a saved model"),
    "config is a Git LFS pointer": (
        write("config.json", LFS),
        r"config\.json is a Git LFS pointer",
    ),
    "config is endless": (
        link("config.json", "/dev/zero"),
        "is not a saved model|not a plain file",
    ),
    "config of no architecture": (write("config.json", b"{}"), "cannot load"),
    "config of an unknown architecture": (config(model_type="nope"), "cannot load.*nope"),
    "config of a model that writes no text": (config(model_type="vit"), "cannot load"),
    "config with more layers": (config(num_hidden_layers=3), r"missing.*layers\.2\."),
    "config with fewer layers": (config(num_hidden_layers=1), r"num_hidden_layers=1.*layers\.1\."),
    "config with a billion layers": (
        config(num_hidden_layers=10**9),
        r"config\.json asks for num_hidden",
    ),
    "config with half a layer": (config(num_hidden_layers=0.5), "cannot load"),
    "config without heads": (config(num_attention_heads=0), "cannot load"),
    "config with a text for a size": (config(hidden_size="wide"), "cannot load"),
    "config with another width": (
        config(hidden_size=128, head_dim=16),
        r"has shape \[.*and config\.json",
    ),
    "config with another vocabulary": (
        config(vocab_size=300),
        r"embed_tokens\.weight' has shape \[259, 64",
    ),
    "config with an unknown activation": (config(hidden_act="softserve"), "cannot load"),
    "config with an unknown rotation": (
        config(rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}),
        "cannot load",
    ),
    "config with attention from the hub": (
        config(attn_implementation="evil/kernel"),
        r"config\.json: attn_implementation names 'evil/kernel'",
    ),
    "weights packed by an unknown quantisation": (
        both(
            config(quantization_config={"quant_method": "nope"}),
            put(Q_PROJ, lambda t: t.to(torch.uint8)),
        ),
        f"'{Q_PROJ}' has type U8",
    ),
    "config that names its weights elsewhere": (
        config(transformers_weights="../other.safetensors"),
        "not a file inside its folder",
    ),
    "config that names weights that are gone": (
        config(transformers_weights="other.safetensors"),
        r"names other\.safetensors, which is missing",
    ),
    "tokenizer is missing": (
        both(gone("tokenizer.json"), gone("tokenizer_config.json")),
        "token",
    ),
    "tokenizer is broken JSON": (write("tokenizer.json", b'{"model":'), "cannot load"),
    "tokenizer is empty": (write("tokenizer.json", b""), r"tokenizer\.json is empty"),
    "tokenizer is a Git LFS pointer": (
        write("tokenizer.json", LFS),
        r"tokenizer\.json is a Git LFS",
    ),
    "tokenizer of an unknown kind": (
        write("tokenizer.json", b'{"model": {"type": "Nope"}}'),
        "cannot load",
    ),
    "tokenizer config is an array": (
        write("tokenizer_config.json", b"[]"),
        r"tokenizer_config\.json must hold",
    ),
    "tokenizer with a token too many": (
        add_tokens("<new>", special=False),
        f"token '<new>' has id 259, and the embedding \\({EMBEDDING}",
    ),
    "tokenizer with a special token too many": (
        add_tokens("<|tool|>", special=True),
        "'<.tool.>' has id 259",
    ),
    "tokenizer of a larger model": (
        add_tokens(*(f"<{n}>" for n in range(50)), special=False),
        "'<0>' has id 259",
    ),
    "generation config is broken": (
        write("generation_config.json", b"{"),
        r"generation_config\.json cannot",
    ),
    "generation never ends": (
        config("generation_config.json", eos_token_id=5000),
        "eos_token_id 5000",
    ),
}
ON_SHARDED: dict[str, tuple[Damage, str]] = {
    "a shard is missing": (first_shard(Path.unlink), r"names model-00001-of-.*, which is missing"),
    "a shard is cut": (
        first_shard(lambda p: os.truncate(p, p.stat().st_size - 5)),
        "is truncated: tensor '",
    ),
    "a shard is empty": (first_shard(lambda p: os.truncate(p, 0)), r"model-00001.* is empty"),
    "a shard is a Git LFS pointer": (
        first_shard(lambda p: p.write_bytes(LFS)),
        "model-00001.*LFS pointer",
    ),
    "the index is broken": (
        write("model.safetensors.index.json", b"{"),
        r"index\.json cannot be read",
    ),
    "the index has no map": (write("model.safetensors.index.json", b"{}"), "has no weight_map"),
    "the index names a file outside": (
        weight_map(lambda m: m.update({Q_PROJ: "../model/model.safetensors"})),
        "not a file inside its folder",
    ),
    "the index names an absolute file": (
        weight_map(lambda m: m.update({Q_PROJ: "/dev/zero"})),
        "not a file inside its folder",
    ),
    "the index names no file": (weight_map(lambda m: m.update({Q_PROJ: 5})), f"{Q_PROJ}' is 5"),
    "the index promises a tensor too many": (
        weight_map(lambda m: m.update({"y.weight": m[Q_PROJ]})),
        r"'y\.weight' is in .*, and it is not",
    ),
    "the index lacks a tensor of a shard that is gone": (
        both(
            weight_map(lambda m: [m.pop(n) for n in [*m] if "00001" in m[n]]),
            first_shard(Path.unlink),
        ),
        "tensors are missing",
    ),
}
ON_ADAPTER: dict[str, tuple[Damage, str]] = {
    "adapter config is broken": (
        write("adapter_config.json", b"{"),
        r"adapter_config\.json cannot be read",
    ),
    "adapter config is an array": (
        write("adapter_config.json", b"[]"),
        r"adapter_config\.json must hold",
    ),
    "adapter without a base": (
        config("adapter_config.json", base_model_name_or_path=None),
        "does not name its base_model",
    ),
    "adapter whose base is a relative path": (
        config("adapter_config.json", base_model_name_or_path="../gone"),
        "'../gone', a relative path",
    ),
    "adapter whose base is gone": (
        config("adapter_config.json", base_model_name_or_path="/gone"),
        "base model '/gone'.*not a saved",
    ),
    "adapter built on itself": (
        config("adapter_config.json", base_model_name_or_path="."),
        "built on this adapter itself",
    ),
    "adapter of another kind": (
        config("adapter_config.json", peft_type="PROMPT_TUNING"),
        "peft_type is 'PROMPT_TUNING'",
    ),
    "adapter of no kind": (config("adapter_config.json", peft_type=None), "peft_type is None"),
    "adapter that imports a module": (
        config("adapter_config.json", megatron_config={"a": 1}, megatron_core="evil"),
        "megatron_core names",
    ),
    "adapter for modules that are not there": (
        config("adapter_config.json", target_modules=["nope"]),
        "cannot load",
    ),
    "adapter of another rank": (config("adapter_config.json", r=3), "size mismatch"),
    "adapter weights are missing": (gone(ADAPTER), r"no adapter_model\.safetensors"),
    "adapter weights are cut": (cut(ADAPTER, -1), r"adapter_model\.safetensors is truncated"),
    "adapter weights are a pipe": (fifo(ADAPTER), "not a plain file"),
    "adapter weights are a Git LFS pointer": (write(ADAPTER, LFS), "LFS pointer"),
    "adapter without a tensor": (drop(LORA_B, file=ADAPTER), f"lacks tensor '{LORA_B}'"),
    "adapter with NaN": (
        put(LORA_A, poke(float("nan")), ADAPTER),
        f"{ADAPTER}: tensor '{LORA_A}' holds",
    ),
    "adapter of a deeper model": (
        weights(
            lambda all: all.update({LORA_A.replace(".1.", ".7."): all[LORA_A].clone()}), ADAPTER
        ),
        "does not exist in the base",
    ),
    "adapter beside another model's weights": (
        both(write("config.json", b"{}"), lambda f: shutil.copy(f / ADAPTER, f / WEIGHTS)),
        "holds both a model",
    ),
}

TABLE = [
    pytest.param(kind, damage, message, id=f"{kind}: {name}")
    for kind, rows in (("model", ON_MODEL), ("sharded", ON_SHARDED), ("adapter", ON_ADAPTER))
    for name, (damage, message) in rows.items()
]


def test_the_sound_models_load(models: Models, tmp_path: Path) -> None:
    want = load_model(models.model, device="cpu").model.get_parameter(Q_PROJ)
    for folder in (models.sharded, models.adapter):
        load_all(folder)
        torch.testing.assert_close(
            load_model(folder, device="cpu").model.get_parameter(Q_PROJ), want
        )


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize(("kind", "damage", "message"), TABLE)
def test_a_damaged_model_is_named(
    models: Models, tmp_path: Path, kind: str, damage: Damage, message: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(getattr(models, kind), folder)
    damage(folder)
    with pytest.raises(StorageError, match=f"(?s){message}") as caught:
        load_all(folder)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len(TABLE) >= 60


def test_a_relative_base_beside_the_adapter_is_found_from_anywhere(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models.model, tmp_path / "base")
    shutil.copytree(models.adapter, tmp_path / "adapter")
    config("adapter_config.json", base_model_name_or_path="../base")(tmp_path / "adapter")
    monkeypatch.chdir("/")
    load_all(tmp_path / "adapter")


def test_weights_that_changed_since_they_were_saved_are_refused(
    models: Models, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    with staged_folder(folder) as staged:
        shutil.copytree(models.model, staged, dirs_exist_ok=True)
    load_all(folder)
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[-3] ^= 1  # the least of a float's bits that matter: no check of values can see it
    (folder / WEIGHTS).write_bytes(raw)
    with pytest.raises(StorageError, match=r"model\.safetensors was altered"):
        load_all(folder)


def test_tokens_for_other_media_may_be_beyond_the_embedding(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models.model, tmp_path / "copy")
    add_tokens("<image_soft_token>", special=True)(tmp_path / "copy")
    load_all(tmp_path / "copy")
