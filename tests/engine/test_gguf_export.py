"""GGUF files: read by the package `gguf`, by Transformers and by llama.cpp, none of them ours."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from orbiter.train.engine.models.gguf import _split_rotary
from orbiter.train.engine.models.gguf_export import (
    GgufType,
    export_gguf,
    export_loaded,
    interleaved,
    llama3_factors,
)
from orbiter.train.engine.models.gguf_file import encoded
from orbiter.train.engine.models.gguf_tokenizer import PATTERNS, pre_tokenizer_name
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.errors import ConfigError, StorageError, TrainingError

TEXTS = [
    "Hello world, it's 2026!\n\n  Tabs\tand  spaces",
    "naïve Übung 東京 🙂 12345",
    "a.b(c)=='d'",
]
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def bpe(*steps: Any, normalizer: Any = None) -> Any:  # noqa: ANN401 - tokenizers' own
    """Train a small byte-level tokenizer that splits text by these steps first."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    core.pre_tokenizer = pre.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    core.decoder = tokenizers.decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*TEXTS * 3, "the end of the world " * 20], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|start|>", eos_token="<|end|>"
    )
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return tokenizer


def llama_bpe(pattern: str = "llama-bpe") -> Any:  # noqa: ANN401 - as above
    pre = tokenizers.pre_tokenizers
    regex = next(regex for regex, name in PATTERNS.items() if name == pattern)
    return bpe(
        pre.Split(tokenizers.Regex(regex), "isolated"),
        pre.ByteLevel(add_prefix_space=False, use_regex=False),
    )


def smollm() -> Any:  # noqa: ANN401 - as above
    pre = tokenizers.pre_tokenizers
    return bpe(pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False))


def gpt2() -> Any:  # noqa: ANN401 - as above
    return bpe(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))


def sentencepiece(space: str = "legacy", chat: str = "") -> Any:  # noqa: ANN401 - as above
    """Train a small tokenizer of SentencePiece's kind: every split of a token is a merge.

    Args:
        space: How a space gets before text: as in Llama 2 ("legacy"), or a scheme of Metaspace.
        chat: The chat template.
    """
    norm, pre = tokenizers.normalizers, tokenizers.pre_tokenizers
    special = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.normalizer = norm.Sequence([norm.Prepend("\u2581"), norm.Replace(" ", "\u2581")])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, show_progress=False
    )
    # Other characters than these fall back to bytes.
    corpus = ["the end of the world " * 20, "hello aaaa  bbbb 2026 it's a.b(c)=='d'" * 3]
    trained.train_from_iterator([line for text in corpus for line in text.split(" the ")], trainer)
    vocabulary = trained.get_vocab()
    pieces = sorted(vocabulary.keys() - set(special), key=vocabulary.__getitem__)
    # As Transformers' converter does it for a SentencePiece model, by the id in place of the score.
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    model = tokenizers.models.BPE(
        vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    core = tokenizers.Tokenizer(model)
    if space == "legacy":
        core.normalizer = trained.normalizer
    else:
        core.pre_tokenizer = pre.Metaspace(prepend_scheme=space, split=False)
    core.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    core.add_special_tokens(special[:3])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = chat or None
    return tokenizer


CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"


def model_of(kind: str, tokenizer: Any, **further: Any) -> Any:  # noqa: ANN401 - transformers'
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": len(tokenizer) + 3, **SHAPE, **further}
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases and norms that do something
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(3.0)  # so that greedy answers are no near ties
    return model


CASES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llama": lambda: (model_of("Llama", t := llama_bpe()), t),
    "llama, tied, biases": lambda: (
        model_of(
            "Llama", t := smollm(), tie_word_embeddings=True, attention_bias=True, mlp_bias=True
        ),
        t,
    ),
    "llama, all heads have keys": lambda: (
        model_of("Llama", t := gpt2(), num_key_value_heads=4, head_dim=32),
        t,
    ),
    "llama 3's rope": lambda: (model_of("Llama", t := llama_bpe(), rope_parameters=LLAMA3), t),
    "linear rope": lambda: (
        model_of(
            "Llama",
            t := llama_bpe(),
            rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        ),
        t,
    ),
    "qwen 2": lambda: (model_of("Qwen2", t := llama_bpe("qwen2"), tie_word_embeddings=True), t),
    "qwen 2, yarn": lambda: (
        model_of(
            "Qwen2",
            t := llama_bpe("qwen2"),
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        ),
        t,
    ),
    "qwen 3": lambda: (model_of("Qwen3", t := llama_bpe("qwen2"), head_dim=32), t),
    "sentencepiece": lambda: (
        model_of(
            "Llama", t := sentencepiece(chat="{% for m in messages %}{{ m.content }}{% endfor %}")
        ),
        t,
    ),
    # Transformers' reader takes every Qwen 3 to have heads of 128 numbers.
    "qwen 3, heads of 128": lambda: (
        model_of("Qwen3", t := llama_bpe("qwen2"), head_dim=128),
        t,
    ),
}


def export(case: str, folder: Path) -> tuple[Any, Any, Path]:
    model, tokenizer = CASES[case]()
    path = folder / "model.gguf"
    export_loaded(model, tokenizer, path, type="f16", name="m")
    return model, tokenizer, path


@pytest.mark.parametrize("case", CASES)
def test_the_reader_finds_every_number_that_the_model_has(case: str, tmp_path: Path) -> None:
    model, tokenizer, path = export(case, tmp_path)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields["general.architecture"]
    config = model.config
    assert fields[f"{architecture}.block_count"] == 2
    assert fields[f"{architecture}.attention.head_count_kv"] == config.num_key_value_heads
    assert fields[f"{architecture}.vocab_size"] == len(fields["tokenizer.ggml.tokens"])
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    tied = config.tie_word_embeddings
    expected = len(model.state_dict()) - tied + ("rope_freqs.weight" in tensors)
    assert len(tensors) == expected
    assert ("output.weight" in tensors) != tied
    embedding = gguf.dequantize(tensors["token_embd.weight"].data, gguf.GGMLQuantizationType.F16)
    weight = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(embedding, weight.astype(np.float16).astype(np.float32))
    norm = tensors["blk.1.ffn_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32
    ours = model.model.layers[1].post_attention_layernorm.weight.detach().numpy()
    np.testing.assert_array_equal(norm.data, ours)


@pytest.mark.parametrize("case", ["llama", "qwen 2", "qwen 3, heads of 128"])
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same_from_the_file(case: str, tmp_path: Path) -> None:
    model, tokenizer, path = export(case, tmp_path)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        theirs, ours = read(ids).logits, model(ids).logits
    spread = float(ours.std())
    assert float((theirs - ours).abs().max()) < 0.02 * spread


def test_q8_0_is_bit_for_bit_that_of_ggml() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(50, 64)).astype(np.float32)
    numbers[3] = 0.0
    numbers[4, :5] = [127.0, -127.0, 0.5, 1.5, -2.5]  # halves, at a scale of 1
    numbers[4, 5:32] = 0.0
    theirs = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
    assert encoded(numbers, "Q8_0") == theirs.tobytes()


def test_q8_0_halves_the_size_and_rows_that_do_not_fit_stay_f16(tmp_path: Path) -> None:
    tokenizer = llama_bpe()
    model = model_of("Llama", tokenizer, intermediate_size=80)
    export_loaded(model, tokenizer, tmp_path / "q.gguf", type="q8_0", name="m")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # rows of 80 numbers
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (llama_bpe, "llama-bpe"),
        (lambda: llama_bpe("qwen2"), "qwen2"),
        (smollm, "smollm"),
        (gpt2, "gpt-2"),
    ],
)
def test_the_tokenizer_is_described_as_llama_cpp_names_it(
    make: Callable[[], Any], name: str, tmp_path: Path
) -> None:
    tokenizer = make()
    assert pre_tokenizer_name(json.loads(tokenizer.backend_tokenizer.to_str())) == name
    path = tmp_path / "t.gguf"
    export_loaded(model_of("Llama", tokenizer), tokenizer, path, type="f16", name="m")
    fields = {n: field.contents() for n, field in gguf.GGUFReader(path).fields.items()}
    kinds, tokens = fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert [kinds[0], kinds[1], kinds[2]] == [3, 3, 1]  # control, control, normal
    assert kinds[tokenizer.convert_tokens_to_ids("<think>")] == 4  # defined by the user
    assert (kinds[-1], tokens[-1]) == (5, f"[PAD{len(tokens) - 1}]")
    assert fields["tokenizer.ggml.eos_token_id"] == 1
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert len(fields["tokenizer.ggml.merges"]) > 20


def test_a_tokenizer_that_begins_texts_with_a_token_says_so(tmp_path: Path) -> None:
    tokenizer = llama_bpe()
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 0)]
    )
    path = tmp_path / "t.gguf"
    export_loaded(model_of("Llama", tokenizer), tokenizer, path, type="f16", name="m")
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.add_bos_token"].contents() is True


@pytest.mark.parametrize(
    ("kind", "further", "message"),
    [
        ("Mistral", {}, "MistralForCausalLM .*cannot be written as GGUF, only LlamaForCausalLM"),
        ("Gemma", {"head_dim": 16}, "GemmaForCausalLM .*cannot be written"),
        ("Qwen3Moe", {"num_experts": 2, "moe_intermediate_size": 32}, "Qwen3MoeForCausalLM"),
        ("Qwen2", {"use_sliding_window": True}, "sliding-window attention"),
        ("Qwen2", {"rope_parameters": LLAMA3}, "'llama3' cannot be written for qwen2"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope scaling 'dynamic'",
        ),
        (
            "Llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "'yarn' with beta_fast",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_by_name(
    kind: str, further: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tokenizer = llama_bpe()
    model = model_of(kind, tokenizer, **further)
    with pytest.raises(ConfigError, match=message):
        export_loaded(model, tokenizer, tmp_path / "m.gguf", type="f16", name="m")
    assert not (tmp_path / "m.gguf").exists()


def other_tokenizers() -> dict[str, tuple[Any, str]]:
    pre, models = tokenizers.pre_tokenizers, tokenizers.models
    fast = transformers.PreTrainedTokenizerFast
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    spm = tokenizers.Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True))

    def changed(space: str = "legacy", chat: str = "", **changes: Any) -> Any:  # noqa: ANN401
        core = sentencepiece(space).backend_tokenizer
        spec = json.loads(core.to_str())
        for name, change in changes.items():
            part = spec if name in spec else spec["model"]
            part[name] = change(part[name]) if callable(change) else change
        made = fast(
            tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(spec)),
            bos_token="<s>",
            eos_token="</s>",
        )
        made.chat_template = chat or None
        return made

    own = bpe(pre.Split(tokenizers.Regex(r"\d"), "isolated"), pre.ByteLevel(False, False))
    lower = bpe(pre.ByteLevel(False), normalizer=tokenizers.normalizers.Lowercase())
    return {
        "words": (fast(tokenizer_object=words), "a WordLevel tokenizer"),
        "no bytes": (fast(tokenizer_object=spm), "has no token for 256 of the 256 bytes"),
        "a merge left out": (
            changed(merges=lambda merges: [m for m in merges if m != ["t", "he"]]),
            "never merges 't' and 'he', as llama.cpp would",
        ),
        "merges apart": (
            changed(merges=lambda merges: [*merges[1:], merges[0]]),
            "at two places of its order|never merges",
        ),
        "whole words": (changed(ignore_merges=True), "whole words before it merges"),
        "splits": (
            changed("always", pre_tokenizer=lambda step: {**step, "split": True}),
            "splits text at spaces before it merges",
        ),
        "collapses": (
            changed("always", normalizer={"type": "Lowercase"}),
            "changes text by Lowercase and Metaspace",
        ),
        "chat begins with text": (
            changed("first", chat=CHAT.removeprefix("{{ bos_token }}")),
            "its chat template begins with text",
        ),
        "its own pattern": (own, "splits text by Split and ByteLevel in a way"),
        "lower case": (lower, "normaliser Lowercase"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("words", "no bytes", "a merge left out", "whole words", "splits", "collapses"),
        *("chat begins with text", "its own pattern", "lower case"),
    ],
)
def test_other_tokenizers_are_refused(name: str, tmp_path: Path) -> None:
    tokenizer, message = other_tokenizers()[name]
    with pytest.raises(ConfigError, match=message):
        export_loaded(
            model_of("Llama", tokenizer), tokenizer, tmp_path / "m.gguf", type="f16", name="m"
        )


def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = llama_bpe()
    model = model_of("Llama", tokenizer, vocab_size=len(tokenizer) - 1)
    with pytest.raises(ConfigError, match="'<think>' has id"):
        export_loaded(model, tokenizer, tmp_path / "m.gguf", type="f16", name="m")


@pytest.mark.parametrize(("value", "type"), [(1e5, "f16"), (1e8, "q8_0"), (float("nan"), "f16")])
def test_a_weight_that_does_not_fit_leaves_the_old_file(
    value: float,
    type: GgufType,
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    tokenizer = llama_bpe()
    model = model_of("Llama", tokenizer)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(TrainingError, match=r"layers\.1\.mlp\.up_proj\.weight holds"):
        export_loaded(model, tokenizer, path, type=type, name="m")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_rows_are_put_back_by_our_own_reader() -> None:
    rows = np.arange(48, dtype=np.float32).reshape(16, 3)
    for heads in (1, 2, 4):
        np.testing.assert_array_equal(_split_rotary(interleaved(rows, heads), heads), rows)


def test_llama_3_s_factors_are_those_of_transformers() -> None:
    model = model_of("Llama", llama_bpe(), rope_parameters=LLAMA3)
    theirs = model.model.rotary_emb.inv_freq.numpy()
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / theirs, llama3_factors(LLAMA3, 16), rtol=1e-5)
    assert len({round(f, 3) for f in llama3_factors(LLAMA3, 16)}) > 2


def test_the_built_in_model_can_be_exported_by_name(tmp_path: Path) -> None:
    exported = export_gguf("tiny", tmp_path / "new" / "tiny.gguf")
    assert exported.architecture == "llama"
    assert exported.bytes == (tmp_path / "new" / "tiny.gguf").stat().st_size
    fields = gguf.GGUFReader(exported.path).fields
    assert fields["tokenizer.ggml.tokens"].contents()[-3:] == list(
        tiny_tokenizer().all_special_tokens
    )


@pytest.mark.parametrize(
    ("path", "kind", "error", "message"),
    [
        ("m.bin", "f16", ConfigError, r"must end in \.gguf"),
        ("m.gguf", "q4_0", ConfigError, "type must be 'f16' or 'q8_0'"),
        ("folder.gguf", "f16", StorageError, "is a folder"),
    ],
)
def test_wrong_targets_are_refused_before_the_model_is_loaded(
    path: str, kind: GgufType, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(error, match=message):
        export_gguf("no-such-model", tmp_path / path, type=kind)


def llama_cpp() -> Any:  # noqa: ANN401 - an optional package
    try:
        return importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError):
        pytest.skip("llama-cpp-python is not installed; pip install llama-cpp-python builds it")


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_same_tokens_and_greedy_answers(case: str, tmp_path: Path) -> None:
    package = llama_cpp()
    model, tokenizer, path = export(case, tmp_path)
    theirs = package.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ids
        with torch.no_grad():
            ours = model(torch.tensor([ids])).logits[0].numpy()
        theirs.reset()
        theirs.eval(ids)
        logits = np.array(theirs.scores[: len(ids)])
        spread = float(ours.std())
        assert float(np.abs(logits - ours).max()) < 0.1 * spread
        answer = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0]
        theirs.reset()
        drawn: list[int] = []
        for token in theirs.generate(ids, top_k=1, temp=0.0):
            if token == tokenizer.eos_token_id or len(drawn) == 8:
                break
            drawn.append(token)
        assert drawn == [i for i in answer[len(ids) :].tolist() if i != tokenizer.eos_token_id]


def texts(seed: int, count: int = 200) -> list[str]:
    """Draw texts of words, runs, spaces and characters without a token."""
    random = np.random.default_rng(seed)
    parts = [
        "the",
        "end",
        "of",
        " ",
        "  ",
        "a",
        "aa",
        "hello",
        "\n",
        "\u2581",
        "é",
        "🙂",
        "12",
        "'s",
    ]
    return ["x" + "".join(random.choice(parts, size=random.integers(1, 12))) for _ in range(count)]


@pytest.mark.parametrize(
    ("space", "chat"),
    [("legacy", ""), ("always", ""), ("never", CHAT), ("first", ""), ("first", CHAT)],
)
def test_llama_cpp_splits_text_as_a_sentencepiece_tokenizer(
    space: str, chat: str, tmp_path: Path
) -> None:
    package = llama_cpp()
    tokenizer = sentencepiece(space, chat)
    path = tmp_path / "m.gguf"
    export_loaded(model_of("Llama", tokenizer), tokenizer, path, type="f16", name="m")
    theirs = package.Llama(str(path), n_ctx=256, vocab_only=True, verbose=False)
    for text in texts(seed=0):
        prompt = text
        if chat:
            turns = [
                {"role": "user", "content": text},
                {"role": "assistant", "content": text[::-1]},
            ]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False)
        elif space in ("legacy", "always"):
            prompt = f"{text}</s>{text}"
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert theirs.tokenize(prompt.encode(), add_bos=False, special=True) == ids, prompt
        assert len(set(ids) & {0, 1}) == (2 if chat else 1 if "</s>" in prompt else 0)


def test_a_sentencepiece_tokenizer_is_described_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    path = tmp_path / "m.gguf"
    export_loaded(model_of("Llama", tokenizer), tokenizer, path, type="f16", name="m")
    fields = {n: field.contents() for n, field in gguf.GGUFReader(path).fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert "tokenizer.ggml.merges" not in fields
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert kinds[:4] == [3, 3, 2, 6]  # control, control, unknown, a byte
    scores = dict(zip(tokens, fields["tokenizer.ggml.scores"], strict=True))
    ranked = sorted(
        (text for text in tokens[259 : len(tokenizer)] if len(text) > 1), key=scores.__getitem__
    )
    # The tokens were numbered in the order in which the training merged them.
    assert ranked[::-1] == [t for t in tokens[259 : len(tokenizer)] if len(t) > 1]
    assert scores[ranked[0]] < scores[ranked[-1]] <= 0


@pytest.mark.nightly
@pytest.mark.parametrize("type", ["f16", "q8_0"])
def test_llama_cpp_answers_as_smollm2_does(type: GgufType, tmp_path: Path) -> None:
    import asyncio

    from orbiter.train.verl import VeRLConfig, VeRLTrainer

    package = llama_cpp()
    path = export_gguf("smollm2-135m", tmp_path / "s.gguf", type=type).path
    theirs = package.Llama(str(path), n_ctx=512, verbose=False, n_threads=2)
    prompts = ["What is the capital of France?", "Name a colour.", "Count from one to five."]
    trainer = VeRLTrainer(VeRLConfig(model="smollm2-135m", device="cpu", progress=False))
    ours = asyncio.run(trainer.generate(prompts, max_response_length=16))
    answers = [
        theirs.create_chat_completion(
            [{"role": "user", "content": prompt}], max_tokens=16, temperature=0.0
        )["choices"][0]["message"]["content"]
        for prompt in prompts
    ]
    agree = sum(a.strip() == b.strip() for a, b in zip(ours, answers, strict=True))
    assert agree >= (3 if type == "f16" else 2)
