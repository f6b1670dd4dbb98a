"""How steps of an episode become conversations, and conversations steps."""

from __future__ import annotations

from typing import Any

from orbiter.train import TrajectoryItem
from orbiter.train.chat.conversation import conversations, items_of
from orbiter.train.chat.transcript import content_of, state_of, write_action

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def step(number: int, action: str, *before: dict[str, Any], episode: str = "e") -> TrajectoryItem:
    return TrajectoryItem(
        "state", action, episode_id=episode, step=number, messages=[USER, *before]
    )


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_steps_that_continue_each_other_are_one_conversation_whatever_their_order() -> None:
    steps = [step(1, "b", said("a"), USER), step(0, "a")]
    (chat,) = conversations(steps)
    assert chat.messages == [USER, said("a"), USER, said("b")]
    assert chat.answers == [1, 3]


def test_a_rewritten_history_begins_a_new_conversation() -> None:
    steps = [step(0, "a"), step(1, "b", said("a, summarised"), USER)]
    first, second = conversations(steps)
    assert (first.answers, second.answers) == ([1], [3])


def test_a_branch_keeps_to_the_conversation_it_continues() -> None:
    steps = [step(0, "a"), step(1, "other"), step(2, "b", said("a"), USER)]
    first, second = conversations(steps)
    assert [item.action for item in first.items] == ["a", "b"]
    assert [item.action for item in second.items] == ["other"]


def test_other_tools_begin_a_new_conversation() -> None:
    steps = [step(0, "a"), step(1, "b", said("a"), USER)]
    steps[1] = TrajectoryItem(
        "state", "b", episode_id="e", step=1, messages=steps[1].messages, tools=[{"name": "t"}]
    )
    assert len(list(conversations(steps))) == 2


def test_items_without_an_episode_stand_alone() -> None:
    items = [TrajectoryItem("s", "a"), TrajectoryItem("s", "a")]
    assert len(list(conversations(items))) == 2


def test_an_answer_and_its_calls_are_one_action_both_ways() -> None:
    words = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    for text in ("", "Let me see.", "ends with a break\n", words):
        action = write_action(text, [CALL])
        assert action == (f"{text}\n{words}" if text else words)
        assert content_of(action, [CALL]) == text
    assert content_of("search(q='x')", [CALL]) == "search(q='x')"


def test_the_state_of_a_chat_is_the_captured_form() -> None:
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2+3?"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]
    assert state_of(chat) == (
        "[system]\nBe brief.\n\n[user]\n2+3?<image_url>\n\n[assistant]\n"
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n\n[tool f]\n5'
    )
    assert state_of([USER]) == "hi"


def test_what_an_item_has_no_field_for_stands_in_its_metadata() -> None:
    answer = {**said("5"), "reasoning_content": "add", "name": "solver", "refusal": None}
    (item,) = items_of([USER, answer, USER], metadata={"source": "x"})
    assert item.metadata == {
        "source": "x",
        "messages_after": [USER],
        "reasoning": "add",
        "answer": {"name": "solver"},
    }
    (chat,) = conversations([item])
    assert chat.messages == [USER, {k: v for k, v in answer.items() if v is not None}, USER]
