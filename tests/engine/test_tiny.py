from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.engine.models.tiny import BYTES, CONTEXT, VOCABULARY, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_token_ids_are_the_bytes_and_every_text_comes_back(
    text: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    if "<|" in text:
        return
    token_ids = tokenizer(text).input_ids
    assert token_ids == list(text.encode())
    assert tokenizer.decode(token_ids) == text


def test_special_tokens_stand_behind_the_bytes_and_are_three_different_ones(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert special == [BYTES, BYTES + 1, BYTES + 2]
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.decode([104, *special, 105], skip_special_tokens=True) == "hi"


def test_bytes_that_are_no_text_decode_without_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode([104, 255, 105]) == "h\ufffdi"


def test_a_chat_is_turns_with_tools_and_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "2+3?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]},
    ]
    text = tokenizer.apply_chat_template(
        chat, tools=[{"name": "add"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        '<|bos|>tools\n[{"name": "add"}]<|eos|>\n<|bos|>system\nbe brief<|eos|>\n'
        "<|bos|>user\n2+3?<|eos|>\n<|bos|>assistant\n"
        '<tool_call>{"name": "add", "arguments": {}}</tool_call><|eos|>\n'
        "<|bos|>assistant\n"
    )


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    one, again, other = tiny_model(3), tiny_model(3), tiny_model(4)
    pairs = zip(one.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_building_it_leaves_the_global_random_state_alone() -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    tiny_model(1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


def test_it_is_tiny_finite_and_starts_undecided() -> None:
    model = tiny_model()
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 800_000
    with torch.no_grad():
        logits = model(torch.arange(BYTES)[None]).logits
    assert logits.shape == (1, BYTES, VOCABULARY)
    assert logits.softmax(-1).max() < 0.05
    assert model.config.max_position_embeddings == CONTEXT
    assert not model.training


def test_saved_and_loaded_it_is_the_same(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_model(2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, reader = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    token_ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(token_ids).logits, model(token_ids).logits)
    text = "naïve , text .  with  spaces\n"
    assert reader(text).input_ids == list(text.encode())
    assert reader.decode(list(text.encode())) == text
    assert reader.chat_template == tokenizer.chat_template
