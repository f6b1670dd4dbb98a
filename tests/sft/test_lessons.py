"""Which tokens imitation trains on: those that were sampled, in one sequence for each episode."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from orbiter.train import SFTConfig, SFTTrainer, TrajectoryItem
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.prompt import render
from orbiter.train.engine.turn_end import render_action
from orbiter.train.sft.lessons import Lessons, make_lessons

TOKENIZER = tiny_tokenizer()
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def ids(text: str) -> list[int]:
    token_ids: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return token_ids


def lessons(items: list[TrajectoryItem], **settings: Any) -> Lessons:  # noqa: ANN401 - SFTConfig's
    system = settings.pop("system", None)
    config = SFTConfig(model="tiny", **settings)
    return make_lessons(TOKENIZER, items, config, context=1024, system=system)


def trained(lessons: Lessons) -> list[str]:
    """Return the text that is trained on, of each sequence."""
    return [
        TOKENIZER.decode([t for t, m in zip(s.token_ids, s.mask, strict=True) if m])
        for s in lessons.streams
    ]


def captured_episode() -> list[TrajectoryItem]:
    """Return two captured turns; the model wrote its call in another form than the template."""
    asked = "<|bos|>user\nwhat is 1 + 1?<|eos|>\n<|bos|>assistant\n"
    called = '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call><|eos|>'
    told = "\n<|bos|>tool\n2<|eos|>\n<|bos|>assistant\n"
    said = "It is 2"
    user = {"role": "user", "content": "what is 1 + 1?"}
    common: dict[str, Any] = {"episode_id": "e", "task_id": "t"}
    first = TrajectoryItem(
        "what is 1 + 1?", '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', 1.0,
        {"finish_reason": "tool_calls"}, messages=[user], tool_calls=[CALL], step=0,
        prompt_token_ids=ids(asked), token_ids=ids(called), **common,
    )  # fmt: skip
    chat: list[dict[str, Any]] = [
        user,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    second = TrajectoryItem(
        "...", said, 1.0, {"finish_reason": "length"}, messages=chat, step=1,
        prompt_token_ids=ids(asked + called + told), token_ids=ids(said), **common,
    )  # fmt: skip
    return [first, second]


def test_a_captured_episode_is_one_sequence_of_exactly_what_was_sampled() -> None:
    first, second = captured_episode()
    for order in ([first, second], [second, first]):
        made = lessons(order)
        assert trained(made) == [
            '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call><|eos|>It is 2'
        ]
        (stream,) = made.streams
        whole = [*(second.prompt_token_ids or ()), *(second.token_ids or ())]
        assert stream.token_ids == whole


def test_without_ids_the_template_writes_the_same_episode_as_one_sequence() -> None:
    bare = [replace(i, prompt_token_ids=None, token_ids=None) for i in captured_episode()]
    made = lessons(bare)
    assert trained(made) == [
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|eos|>It is 2'
    ], "the second answer was cut off, so it has no end"
    assert made.streams[0].token_ids == render(TOKENIZER, bare[1]) + render_action(
        TOKENIZER, bare[1]
    )


def test_ids_of_another_tokenizer_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    foreign = [replace(item, token_ids=[5, 6, 7]) for item in captured_episode()]
    assert trained(lessons(foreign)) == trained(
        lessons([replace(i, prompt_token_ids=None, token_ids=None) for i in foreign])
    )
    assert "of another tokenizer" in caplog.text
    beyond = [replace(item, token_ids=[70_000]) for item in captured_episode()]
    assert "It is 2" in trained(lessons(beyond))[0]
    assert "knows 259 tokens" in caplog.text


def test_a_system_prompt_of_ones_own_replaces_captured_prompts() -> None:
    made = lessons(captured_episode(), system="Be brief.")
    assert all("Be brief." in TOKENIZER.decode(stream.token_ids) for stream in made.streams)


def test_items_without_an_episode_stay_apart_and_in_order() -> None:
    items = [TrajectoryItem(f"q{n}", f"a{n}") for n in range(3)]
    assert trained(lessons(items)) == [f"a{n}<|eos|>" for n in range(3)]


def test_a_rewritten_history_begins_a_second_sequence_and_nothing_is_trained_twice() -> None:
    first, second = captured_episode()
    rewritten = replace(second, prompt_token_ids=ids("<|bos|>user\nsummary<|eos|>\n"))
    made = lessons([first, rewritten])
    assert len(made.streams) == 2
    assert sum(sum(stream.mask) for stream in made.streams) == sum(
        len(item.token_ids or ()) for item in (first, second)
    )


def test_each_turn_of_a_sequence_has_the_weight_of_its_own_reward() -> None:
    first, second = captured_episode()
    made = lessons([replace(first, reward=3.0), replace(second, reward=1.0)], reward_weighted=True)
    assert made.weights is not None
    (weights,), (stream,) = made.weights, made.streams
    sampled = [w for w, m in zip(weights, stream.mask, strict=True) if m]
    cut = len(first.token_ids or ())
    assert sampled == [1.5] * cut + [0.5] * (len(sampled) - cut)
    assert {w for w, m in zip(weights, stream.mask, strict=True) if not m} == {0.0}


async def test_the_loss_is_that_of_the_sampled_tokens_and_the_plan_counts_sequences() -> None:
    items = captured_episode()
    trainer = SFTTrainer(SFTConfig(model="tiny", epochs=3, batch_size=1))
    plan = await trainer.plan(items)
    assert plan.items == 1
    assert plan.steps == 3
    await trainer.train(items)
    assert len(trainer.history) == 3
    assert trainer.history[0]["tokens"] == sum(len(item.token_ids or ()) for item in items)


def test_the_template_of_tiny_is_what_the_captured_ids_spell() -> None:
    first, _ = captured_episode()
    assert list(first.prompt_token_ids or ()) == render(TOKENIZER, first)
    assert json.loads(CALL["function"]["arguments"]) == {"a": 1}  # type: ignore[index]
