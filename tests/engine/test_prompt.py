from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.prompt import render, shorten
from orbiter.train.engine.turn_end import render_action
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = """\
{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}\
{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"""
"""Concatenates text as SmolLM2's does: no tools, no calls, no content that is None."""
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + PLAIN_TEMPLATE
)
"""Refuses a system turn, as Gemma's does."""
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=30).filter(
    lambda text: "<|" not in text
)
Chat = list[dict[str, object]]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "X"}'}}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def shared() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def test_a_state_is_the_users_turn_and_the_answer_is_awaited(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for given_as in ("2+3?", TrajectoryItem("2+3?", "5")):
        text = tokenizer.decode(render(tokenizer, given_as))
        assert text == "<|bos|>user\n2+3?<|eos|>\n<|bos|>assistant\n"


@given(state=TEXT, action=TEXT)
def test_prompt_and_action_together_are_what_the_template_gives(
    state: str, action: str, shared: PreTrainedTokenizerBase
) -> None:
    item = TrajectoryItem(state, action)
    chat = [{"role": "user", "content": state}, {"role": "assistant", "content": action}]
    whole = shared.apply_chat_template(chat, tokenize=False).removesuffix("\n")
    token_ids = render(shared, item) + render_action(shared, item)
    assert token_ids == shared(whole, add_special_tokens=False).input_ids
    assert token_ids[-1] == shared.eos_token_id


def test_a_system_prompt_stands_first_and_takes_the_place_of_another(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    chat = [{"role": "system", "content": "old"}, {"role": "user", "content": "hi"}]
    item = TrajectoryItem("hi", "", messages=chat)
    assert "<|bos|>system\nold<|eos|>" in tokenizer.decode(render(tokenizer, item))
    text = tokenizer.decode(render(tokenizer, item, system="new"))
    assert text.startswith("<|bos|>system\nnew<|eos|>")
    assert "old" not in text
    assert item.messages == chat


def test_messages_go_before_the_state(tokenizer: PreTrainedTokenizerBase) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    chat: Chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ]  # fmt: skip
    text = tokenizer.decode(render(tokenizer, TrajectoryItem("ignored", "", messages=chat)))
    assert "ignored" not in text
    assert "<|bos|>user\none two<|eos|>" in text
    assert '"arguments": {"at": "X"}' in text
    assert text.endswith("<|bos|>tool\nrain<|eos|>\n<|bos|>assistant\n")


def test_tools_go_through_the_template_where_it_has_a_place_for_them(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    text = tokenizer.decode(render(tokenizer, TrajectoryItem("hi", "", tools=[WEATHER])))
    assert text.startswith(f"<|bos|>tools\n{json.dumps([WEATHER])}<|eos|>")
    assert "system" not in text


def test_a_template_without_tools_or_calls_gets_them_in_words(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = PLAIN_TEMPLATE
    chat: Chat = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "rain"},
    ]
    item = TrajectoryItem("", "", messages=chat, tools=[WEATHER])
    text = tokenizer.decode(render(tokenizer, item, system="Be kind."))
    assert text.startswith("[system]Be kind.\n\nYou may call these tools:\n" + json.dumps(WEATHER))
    assert '<tool_call>{"name": "weather", "arguments": {"at": "X"}}</tool_call>' in text
    assert "None" not in text


def test_a_template_that_refuses_a_system_turn_gets_it_in_the_users(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = NO_SYSTEM_TEMPLATE
    text = tokenizer.decode(render(tokenizer, "hi", system="Be kind."))
    assert text == "[user]Be kind.\n\nhi<|eos|>[assistant]"


def test_a_tokenizer_without_a_template_reads_the_text_as_it_is(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = None
    item = TrajectoryItem("Q: 2+3? A:", " 5")
    assert tokenizer.decode(render(tokenizer, item)) == "Q: 2+3? A:"
    assert tokenizer.decode(render(tokenizer, item, system="Sums.")) == "Sums.\n\nQ: 2+3? A:"
    assert tokenizer.decode(render_action(tokenizer, item)) == " 5<|eos|>"
    with pytest.raises(DataError, match="has no tokens"):
        render(tokenizer, "")


def test_calls_stand_for_the_action_where_the_template_has_a_place_for_them(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    item = TrajectoryItem("weather?", "weather(at='X')", tools=[WEATHER], tool_calls=[CALL])
    called = tokenizer.decode(render_action(tokenizer, item))
    assert '"arguments": {"at": "X"}' in called
    assert "weather(at='X')" not in called
    assert called.endswith("<|eos|>")
    tokenizer.chat_template = PLAIN_TEMPLATE
    assert tokenizer.decode(render_action(tokenizer, item)) == "weather(at='X')<|eos|>"


def test_arguments_that_are_no_json_stay_as_the_model_wrote_them(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    broken = {"function": {"name": "f", "arguments": '{"a": '}}
    chat = [{"role": "assistant", "content": "", "tool_calls": [broken]}]
    text = tokenizer.decode(render(tokenizer, TrajectoryItem("", "", messages=chat)))
    assert json.dumps(broken["function"]["arguments"]) in text


def test_a_content_that_is_no_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    item = TrajectoryItem("", "", messages=[{"role": "user", "content": picture}])
    with pytest.raises(DataError, match="must be text"):
        render(tokenizer, item)


def test_turns_that_the_template_refuses_are_a_data_error(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        render(tokenizer, "hi")


@pytest.mark.parametrize("system", [None, "be brief"])
def test_a_prompt_cut_on_the_left_keeps_its_head_and_its_end(
    tokenizer: PreTrainedTokenizerBase, system: str | None
) -> None:
    item = TrajectoryItem("one two three four five", "")
    whole = render(tokenizer, item, system=system)
    assert shorten(tokenizer, item, len(whole), system=system) == whole
    cut = shorten(tokenizer, item, len(whole) - 8, system=system)
    assert len(cut) == len(whole) - 8
    text = tokenizer.decode(whole).replace("one two ", "")
    assert tokenizer.decode(cut) == text


def test_a_cut_conversation_keeps_its_newest_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "an old question " * 5},
        {"role": "assistant", "content": "an old answer"},
        {"role": "user", "content": "and now?"},
    ]
    item = TrajectoryItem("", "", messages=chat)
    whole = tokenizer.decode(render(tokenizer, item))
    text = tokenizer.decode(shorten(tokenizer, item, 100))
    assert text.startswith("<|bos|>system\nbe brief<|eos|>\n<|bos|>user\n")
    assert text.endswith("<|bos|>user\nand now?<|eos|>\n<|bos|>assistant\n")
    assert len(text) < len(whole)


def test_a_head_that_is_too_long_is_cut_too(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = render(tokenizer, "hi", system="s" * 100)
    assert shorten(tokenizer, "hi", 20, system="s" * 100) == whole[-20:]
