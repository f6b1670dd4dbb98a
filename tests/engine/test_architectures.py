"""Every architecture of transformers either matches plain Hugging Face or is refused by name."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from orbiter.train.engine.batch import collate
from orbiter.train.engine.models.architectures import UNBOUNDED
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.policy import make_policy
from orbiter.train.engine.rollout import given
from orbiter.train.engine.sample import sample
from orbiter.train.engine.update import logprob
from orbiter.train.errors import ConfigError
from tests.engine.architectures import model_types, tiny_model_of

MATCHES: tuple[str, ...] = (
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "beam", "biogpt", "bitnet", "bloom",
    "codegen", "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "deepseek_v2", "deepseek_v3",
    "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon",
    "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma4_unified_text", "glm", "glm4",
    "glm4_moe", "glm4_moe_lite", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox",
    "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe",
    "granitemoe_swa", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe",
    "kolibri1", "laguna", "llama", "longcat_flash", "mellum", "mimo_v2_flash", "minicpm3",
    "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "moshi", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3",
    "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma",
    "youtu",
)  # fmt: skip
REFUSED: tuple[str, ...] = (
    "axk2", "bailing_hybrid", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus",
    "blenderbot", "blenderbot-small", "cpmant", "deepseek_v32", "electra", "ernie", "falcon_h1",
    "falcon_mamba", "glm_moe_dsa", "hy_v4", "inkling2_text", "inkling_text", "jamba", "lfm2",
    "lfm3", "llama4_text", "mamba", "marian", "mbart", "megatron-bert", "minimax", "mvp",
    "nemotron_h", "olmo_hybrid", "openai-gpt", "pegasus", "plbart", "qwen3_5_moe_text",
    "qwen3_5_text", "qwen3_next", "qwen4_exp_text", "recurrent_gemma", "rembert", "roformer",
    "rwkv", "trocr", "whisper", "xlm",
)  # fmt: skip
TABLE = Path(__file__).parents[2] / "docs" / "engine.md"


def alone(model: torch.nn.Module, token_ids: list[int], answer: int) -> torch.Tensor:
    """Return plain Hugging Face's log probabilities of the last tokens of one sequence."""
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    likely: torch.Tensor = logits.gather(1, ids[0, 1:, None])[-answer:, 0]
    return likely


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MATCHES)
def test_scores_and_samples_are_those_of_plain_hugging_face(model_type: str) -> None:
    if model_type not in model_types():
        pytest.skip("this version of transformers does not have it")
    model = tiny_model_of(model_type)
    plain = copy.deepcopy(model)
    policy = make_policy(model, tiny_tokenizer(), device="cpu")
    assert 100 < policy.context_length <= UNBOUNDED
    rows = [given([1, 2, 3, 4, 5], [6, 7, 8, 9]), given([10, 11], [12, 13, 14])]
    scored = logprob(policy, collate(rows))
    for row, rollout in enumerate(rows):
        length, answer = len(rollout.token_ids), len(rollout.completion_ids)
        ours = scored[row, length - answer : length]
        assert torch.allclose(ours, alone(plain, rollout.token_ids, answer), atol=1e-4)
    for rollout in sample(policy, [[1, 2, 3, 4, 5], [10, 11]], n=2, max_new_tokens=6):
        answer = len(rollout.completion_ids)
        drawn = torch.tensor(rollout.old_logprob[-answer:])
        assert torch.allclose(drawn, alone(plain, rollout.token_ids, answer), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_trained_is_refused_by_its_name(model_type: str) -> None:
    if model_type not in model_types():
        pytest.skip("this version of transformers does not have it")
    with pytest.raises(ConfigError, match=re.escape(f"model type {model_type!r}")):
        make_policy(tiny_model_of(model_type), tiny_tokenizer(), device="cpu")


def test_the_documentation_lists_what_is_tested() -> None:
    text = TABLE.read_text(encoding="utf-8")
    for title, listed in (("matches", MATCHES), ("refused by name", REFUSED)):
        (row,) = re.findall(rf"^\| {title} \|.*\| ([^|]*) \|$", text, re.MULTILINE)
        assert sorted(re.findall(r"`([^`]+)`", row)) == sorted(listed)
