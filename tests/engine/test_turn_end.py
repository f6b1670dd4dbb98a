from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers

from orbiter.train import RewardSpec, SFTConfig, SFTTrainer, TrajectoryItem, VeRLConfig, VeRLTrainer
from orbiter.train.engine.encoding import encode, encode_after, texts_of_answers
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.prompt import render, render_text
from orbiter.train.engine.sample import sample
from orbiter.train.engine.turn_end import render_action, stop_token_ids, turn_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
"""Writes the end of the whole text after the last turn, which nobody samples."""
CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<|call|>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}<|called|>{% endfor %}"
    "{% if m.tool_calls %}<|eom|>{% else %}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Ends a turn of calls with another token than a turn of words."""
MARKS = ["<|im_start|>", "<|im_end|>", "<|call|>", "<|called|>", "<|eom|>"]
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def marked(template: str, *, special: bool = True) -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([tokenizers.AddedToken(mark, special=special) for mark in MARKS])
    tokenizer.chat_template = template
    return tokenizer


def metaspace(template: str | None) -> PreTrainedTokenizerBase:
    """Return a tokenizer that begins every text with a space, as Llama's first ones did."""
    pieces = ["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz\n:[]?.", "red", "▁red", "▁user"]
    vocabulary = [(piece, -float(len(pieces) - i) / 9) for i, piece in enumerate(pieces)]
    core = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=0))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    core.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always", split=True)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("template", [CHATML, PHI])
def test_an_answer_ends_with_the_token_that_the_template_puts_there(
    template: str, special: bool
) -> None:
    tokenizer = marked(template, special=special)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_ends(tokenizer).text == end
    answer = render_action(tokenizer, TrajectoryItem("hi", "hello\n"))
    assert tokenizer.decode(answer) == "hello\n<|im_end|>"
    assert stop_token_ids(tokenizer) == {end, tokenizer.eos_token_id}


def test_calls_may_end_with_a_token_of_their_own() -> None:
    tokenizer = marked(CALLS)
    words, calls = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_end|>", "<|eom|>"))
    assert turn_ends(tokenizer)[:2] == (words, calls)
    item = TrajectoryItem("hi", "", tool_calls=[CALL, CALL])
    text = tokenizer.decode(render_action(tokenizer, item))
    assert text == '<|call|>f{"a": 1}<|called|><|call|>f{"a": 1}<|called|><|eom|>'


def test_a_mark_between_two_calls_does_not_end_the_turn() -> None:
    tokenizer = marked(CALLS.replace("<|eom|>", ""))
    assert turn_ends(tokenizer).calls is None
    item = TrajectoryItem("hi", "", tool_calls=[CALL, CALL])
    assert tokenizer.decode(render_action(tokenizer, item)[-2:]) == "}<|called|>"


def test_a_template_without_a_mark_gets_the_end_of_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    answer = render_action(tokenizer, TrajectoryItem("hi", "code\n"))
    assert tokenizer.decode(answer).endswith("code\n<|eos|>")


@pytest.mark.parametrize("reason", ["length", "max_tokens", ["length"]])
def test_an_answer_that_was_cut_off_has_no_end(reason: object) -> None:
    for tokenizer in (tiny_tokenizer(), marked(CHATML)):
        item = TrajectoryItem("hi", "I was going to", metadata={"finish_reason": reason})
        assert tokenizer.decode(render_action(tokenizer, item)) == "I was going to"
    whole = TrajectoryItem("hi", "done", metadata={"finish_reason": "stop"})
    assert render_action(tiny_tokenizer(), whole)[-1] == tiny_tokenizer().eos_token_id


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}",
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
    ],
)
def test_a_tokenizer_that_begins_with_a_space_adds_none_inside_a_chat(template: str) -> None:
    tokenizer = metaspace(template)
    item = TrajectoryItem("red?", "red")
    chat = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "red"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
    assert render(tokenizer, item) + render_action(tokenizer, item) == encode(tokenizer, whole)


def test_a_seam_that_a_token_would_span_keeps_the_tokens_before_it() -> None:
    tokenizer = metaspace(None)
    assert tokenizer.convert_ids_to_tokens(encode_after(tokenizer, "user r", "ed")) == ["e", "d"]
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, "red")) == ["▁red"]


def test_a_tokenizer_that_appends_its_end_does_not_end_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 256), ("<|eos|>", 257)]
    )
    assert tokenizer("2+3=").input_ids[-1] == tokenizer.eos_token_id
    item = TrajectoryItem("2+3=", "5")
    assert tokenizer.decode(render(tokenizer, item)) == "<|bos|>2+3="
    assert tokenizer.decode(render_action(tokenizer, item)) == "5<|eos|>"


def test_without_a_template_system_turn_tools_and_roles_are_in_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "hi"}
    tool = {"type": "function", "function": {"name": "clock"}}
    alone = TrajectoryItem("hi", "", messages=[system, user], tools=[tool])
    text = render_text(tokenizer, alone)
    assert text.startswith("Be brief.\n\nYou may call these tools:\n")
    assert '"clock"' in text
    assert text.endswith("\n\nhi")
    assert render_text(tokenizer, alone, system="Shout.").startswith("Shout.\n\n")
    longer = [system, user, {"role": "assistant", "content": "hello"}, user]
    assert render_text(tokenizer, TrajectoryItem("", "", messages=longer)) == (
        "Be brief.\n\n[user]\nhi\n\n[assistant]\nhello\n\n[user]\nhi\n\n[assistant]\n"
    )


def test_developer_is_another_name_of_system() -> None:
    for tokenizer in (tiny_tokenizer(), marked(CHATML)):
        prompts = [
            render(
                tokenizer,
                TrajectoryItem(
                    "",
                    "",
                    messages=[{"role": role, "content": "x"}, {"role": "user", "content": "y"}],
                ),
            )
            for role in ("system", "developer")
        ]
        assert prompts[0] == prompts[1]


def test_text_beside_a_call_is_learned_and_random_ids_are_not() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "{'name': function.name,", "{'id': call.id, 'name': function.name,"
    )
    written = 'Let me look.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    answers = [
        tokenizer.decode(
            render_action(
                tokenizer, TrajectoryItem("hi", action, tool_calls=[{**CALL, "id": f"call_{n}"}])
            )
        )
        for n, action in enumerate((written, "Let me look."))
    ]
    assert answers[0] == answers[1]
    assert answers[0].startswith("Let me look.\n<tool_call>")
    assert "call_0" not in answers[0]
    assert '"id": "000000001"' in answers[0]


def test_a_result_keeps_the_number_of_its_call() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {% for c in m.tool_calls or [] %}{{ c.id }} "
        "{% endfor %}{{ m.tool_call_id or '' }}\n{% endfor %}"
    )
    calls = [{**CALL, "id": "a"}, {**CALL, "id": "b"}]
    chat: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "", "tool_call_id": "b"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "a"}]},
        {"role": "tool", "content": "", "tool_call_id": "a"},
    ]
    assert render_text(tokenizer, TrajectoryItem("", "", messages=chat)).split("\n")[:4] == [
        "assistant 000000001 000000002 ",
        "tool 000000002",
        "assistant 000000003 ",
        "tool 000000003",
    ]
    assert chat[0]["tool_calls"][0]["id"] == "a", "the item itself is unchanged"


def test_the_text_of_an_answer_leaves_out_its_end_and_keeps_marks_on_request() -> None:
    tokenizer = marked(CALLS, special=False)
    ids = tokenizer("<|call|>f<|eom|>", add_special_tokens=False).input_ids
    stops = stop_token_ids(tokenizer)
    assert texts_of_answers(tokenizer, [ids], stops=stops) == [("<|call|>f", "<|call|>f")]
    special = marked(CALLS)
    assert texts_of_answers(special, [ids], stops=stops) == [("f", "<|call|>f")]


@pytest.fixture(scope="module")
def model_with_marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny model whose template ends turns with another token than the tokenizer's end."""
    folder = tmp_path_factory.mktemp("models") / "marked"
    config = transformers.LlamaConfig(
        vocab_size=259 + len(MARKS), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        tie_word_embeddings=True, bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    marked(CHATML).save_pretrained(folder)
    return folder


async def test_after_imitation_the_model_stops_where_the_template_ends_a_turn(
    model_with_marks: Path, tmp_path: Path
) -> None:
    items = [TrajectoryItem(f"say {word}", word) for word in ("yes", "no")]
    config = SFTConfig(
        model=str(model_with_marks), epochs=60, learning_rate=5e-3, max_response_length=12
    )
    trainer = SFTTrainer(config)
    await trainer.train(items)
    assert await trainer.generate([item.state for item in items]) == ["yes", "no"]
    folder = await trainer.save(tmp_path / "model")

    end = marked(CHATML).convert_tokens_to_ids("<|im_end|>")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert end in plain.generation_config.eos_token_id
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = torch.tensor([render(tokenizer, "say yes")])
    said = plain.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(said) == "yes<|im_end|>"

    grpo = VeRLTrainer(
        VeRLConfig(model=str(folder), group_size=4, batch_size=2, max_response_length=12),
        [RewardSpec("length", fn=lambda output: float(len(output)))],
    )
    policy = await grpo.policy()
    rollouts = sample(policy, [render(policy.tokenizer, items[0])], n=4, max_new_tokens=12)
    assert {rollout.finish_reason for rollout in rollouts} == {"stop"}


async def test_rewards_see_special_tokens_where_they_ask_for_them(model_with_marks: Path) -> None:
    seen: list[tuple[str, str]] = []

    def both(output: str, raw_output: str) -> float:
        seen.append((output, raw_output))
        return float(len(raw_output))

    def only_raw(raw_output: str) -> float:
        return float(len(raw_output))

    config = VeRLConfig(
        model=str(model_with_marks), group_size=8, batch_size=2, max_response_length=24
    )
    rewards = [RewardSpec("both", fn=both), RewardSpec("raw", fn=only_raw)]
    await VeRLTrainer(config, rewards).train(["a", "b"])
    assert any("<|" in raw and "<|" not in output for output, raw in seen)
    assert not any(raw.endswith("<|im_end|>") for _, raw in seen)
    seen.clear()
    kept = VeRLConfig(
        model=str(model_with_marks), group_size=8, batch_size=2, max_response_length=24,
        keep_special_tokens=True,
    )  # fmt: skip
    await VeRLTrainer(kept, [RewardSpec("both", fn=both)]).train(["a", "b"])
    assert all(output == raw for output, raw in seen)
