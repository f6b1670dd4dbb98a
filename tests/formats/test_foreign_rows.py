"""Rows of other tools, each as its own tool writes it, are read as what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.formats import check, detect, read, write
from orbiter.train.synthesis import filter_by_score

Json = Any
USER = {"role": "user", "content": "Weather in Graz?"}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Graz"}'},
}
SUN = {"role": "tool", "tool_call_id": "c1", "content": "sun"}
SUNNY = {"type": "text", "text": "sun"}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SPOKEN = '<tool_call>{"name": "weather", "arguments": {"city": "Graz"}}</tool_call>'


def items(row: Json, tmp_path: Path, name: str | None = None) -> list[TrajectoryItem]:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    report = check(path, name)
    assert report.ok, str(report)
    return list(read(path, name))


@pytest.mark.parametrize("speaker", ["gpt", "chatgpt", "bing", "bard", "model", "assistant", "GPT"])
@pytest.mark.parametrize("asker", ["human", "user"])
def test_every_sharegpt_speaker_is_known(speaker: str, asker: str, tmp_path: Path) -> None:
    row = {"conversations": [{"from": asker, "value": "Hi"}, {"from": speaker, "value": "Hello"}]}
    (item,) = items(row, tmp_path)
    assert (item.state, item.action) == ("Hi", "Hello")


def test_anthropic_blocks_become_calls_results_and_reasoning(tmp_path: Path) -> None:
    called = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "look it up", "signature": "s"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Graz"}},
        ],
    }
    answered = {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "c1",
                "content": [{"type": "text", "text": "sun"}],
            },
            {"type": "text", "text": "So?"},
        ],
    }
    row = {
        "system": "Be brief.",
        "messages": [USER, called, answered, {"role": "assistant", "content": "Sunny."}],
        "tools": [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}],
    }
    call, answer = items(row, tmp_path)
    assert call.action == f"Let me see.\n{SPOKEN}"
    assert call.tool_calls == [CALL]
    assert call.metadata["reasoning"] == "look it up"
    assert call.messages == [{"role": "system", "content": "Be brief."}, USER]
    assert call.tools == [
        {
            "type": "function",
            "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}},
        }
    ]
    assert answer.action == "Sunny."
    assert answer.messages is not None
    assert list(answer.messages)[3:] == [SUN, {"role": "user", "content": "So?"}]


@pytest.mark.parametrize("result", ["tool_response", "tool", "observation", "ipython"])
def test_ms_swift_roles_become_calls_and_their_results(result: str, tmp_path: Path) -> None:
    spoken = {"name": "weather", "arguments": {"city": "Graz"}}
    other = {"name": "weather", "arguments": '{"city": "Linz"}'}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": "Let me see."},
            {"role": "tool_call", "content": json.dumps(spoken)},
            {"role": "tool_call", "content": json.dumps(other)},
            {"role": result, "content": "sun"},
            {"role": result, "content": "rain"},
            {"role": "assistant", "content": "Sun, then rain."},
        ]
    }
    call, answer = items(row, tmp_path)
    calls: Json = call.tool_calls
    assert [made["function"]["arguments"] for made in calls] == [
        '{"city": "Graz"}', '{"city": "Linz"}',
    ]  # fmt: skip
    assert call.action.startswith("Let me see.\n<tool_call>")
    results = list(answer.messages or ())[2:]
    assert [message["role"] for message in results] == ["tool", "tool"]
    assert [message["tool_call_id"] for message in results] == [
        made["id"] for made in call.tool_calls or ()
    ]


def test_the_old_function_call_becomes_a_call_and_its_result(tmp_path: Path) -> None:
    old = {"name": "weather", "arguments": '{"city": "Graz"}'}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "function_call": old},
            {"role": "function", "name": "weather", "content": "sun"},
            {"role": "assistant", "content": "Sunny.", "function_call": "auto"},
        ],
        "functions": [{"name": "weather", "parameters": {"type": "object"}}],
    }
    call, answer = items(row, tmp_path)
    assert call.action == SPOKEN
    assert call.tools == [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    result = list(answer.messages or ())[-1]
    assert result["tool_call_id"] == (call.tool_calls or ())[0]["id"]
    assert answer.state.endswith("[tool weather]\nsun")


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c", "type": "custom", "custom": {"name": "exec", "input": "ls -l"}},
        {"id": "c", "type": "web_search_call", "action": {"query": "Graz"}},
    ],
)
def test_calls_that_are_no_functions_are_kept_whole(call: Json, tmp_path: Path) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    (item,) = items(row, tmp_path)
    assert item.tool_calls == [call]
    for name in ("openai-chat", "trl-messages", "trl-prompt-completion", "sharegpt", "atif"):
        write([item], tmp_path / f"{name}.jsonl", name)
        (back,) = read(tmp_path / f"{name}.jsonl", name)
        assert (back.tool_calls, back.action) == (item.tool_calls, item.action), name


@pytest.mark.parametrize(
    "call",
    [
        {"name": "weather", "arguments": {"city": "Graz"}},
        {"name": "weather", "args": {"city": "Graz"}, "id": "x", "type": "tool_call"},
        {"type": "tool_use", "name": "weather", "input": {"city": "Graz"}},
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}},
        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Graz"}'}},
    ],
)
def test_every_form_of_a_function_call_says_the_same(call: Json, tmp_path: Path) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert [item.action for item in items(row, tmp_path)] == [SPOKEN]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            "sharegpt",
        ),
        ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, "alpaca"),
        (
            {
                "messages": [{"role": "user", "content": "q"}],
                "chosen": {"role": "assistant", "content": "good"},
                "rejected": {"role": "assistant", "content": "bad"},
            },
            "trl-preference",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "good"},
                ],
                "rejected_response": "bad",
            },
            "openai-chat",
        ),
        (
            {
                "chosen": "\n\nHuman: q\n\nAssistant: good",
                "rejected": "\n\nHuman: q\n\nAssistant: bad",
            },
            "trl-preference",
        ),
        (
            {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"},
            "trl-preference",
        ),
        ({"question": "q", "chosen": "good", "rejected": "bad"}, "trl-preference"),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "chosen": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "good"},
                ],
                "rejected": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "bad"},
                ],
            },
            "trl-preference",
        ),
    ],
)
def test_a_pair_is_a_better_and_a_worse_answer(row: Json, name: str, tmp_path: Path) -> None:
    better, worse = items(row, tmp_path)
    assert detect(tmp_path / "x.jsonl").name == name
    assert (better.state, better.action, better.reward) == ("q", "good", 1.0)
    assert (worse.state, worse.action, worse.reward) == ("q", "bad", 0.0)
    assert better.metadata == worse.metadata == {}


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize(
    ("row", "tag"),
    [
        ({"conversations": TURNS}, "kto_tag"),
        ({"instruction": "q", "output": "a"}, "kto_tag"),
        ({"messages": CHAT}, "label"),
        ({"messages": CHAT}, "kto_tag"),
        ({"prompt": "q", "completion": "a"}, "label"),
    ],
)  # fmt: skip
def test_a_tag_is_the_reward_of_the_last_answer(
    row: Json, tag: str, good: bool, tmp_path: Path
) -> None:
    (item,) = items({**row, tag: good}, tmp_path)
    assert (item.state, item.action, item.reward) == ("q", "a", float(good))
    assert item.metadata == {}


@pytest.mark.parametrize("column", ["completion", "response", "generation"])
def test_the_answer_to_a_prompt_may_have_another_name(column: str, tmp_path: Path) -> None:
    (item,) = items({"prompt": "q", column: "a", "answer": "gold"}, tmp_path)
    assert (item.state, item.action, item.metadata) == ("q", "a", {"answer": "gold"})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"type": "human", "content": "q"}, {"type": "ai", "content": "a"}]},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}]},
        {"conversations": [{"role": "user", "content": "q"}, {"role": "model", "content": "a"}]},
        {"messages": [{"role": "USER", "content": "q"}, {"role": "Assistant", "content": "a"}]},
    ],
)
def test_other_words_for_role_and_content_are_known(row: Json, tmp_path: Path) -> None:
    (item,) = items(row, tmp_path)
    assert (item.state, item.action, item.metadata) == ("q", "a", {})


def test_items_of_the_responses_api_are_calls_and_results(tmp_path: Path) -> None:
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c1",
        "name": "weather",
        "arguments": "{}",
    }
    result = {"type": "function_call_output", "call_id": "c1", "output": "sun"}
    row = {"messages": [USER, call, result, {"role": "assistant", "content": "Sunny."}]}
    first, last = items(row, tmp_path)
    assert first.action == '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    assert (last.messages or ())[-1] == SUN


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_reward_beside_a_chat_is_that_of_its_last_answer(name: str, tmp_path: Path) -> None:
    chat = {"messages": [*CHAT, *CHAT], "conversations": [*TURNS, *TURNS]}[name]
    first, last = items({name: chat, "reward": 0.5}, tmp_path)
    assert (first.reward, last.reward, last.metadata) == (None, 0.5, {})


def called(name: str, function: str, answer: str) -> list[Json]:
    """Return an episode of an agent that calls a tool, then answers, in either form."""
    arguments = '{"order": "1"}'
    if name == "conversations":
        call = json.dumps({"name": function, "arguments": {"order": "1"}})
        return [
            {"from": "human", "value": "Where is order 1?"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "late"},
            {"from": "gpt", "value": answer},
        ]
    made = {"id": "c", "type": "function", "function": {"name": function, "arguments": arguments}}
    return [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c", "content": "late"},
        {"role": "assistant", "content": answer},
    ]


@pytest.mark.parametrize("name", ["messages", "conversations"])
@pytest.mark.parametrize("turns", [1, 2])
def test_the_score_of_an_agents_episode_reaches_every_call(
    name: str, turns: int, tmp_path: Path
) -> None:
    chat = called(name, "find", "It is late.") * turns
    read = items({name: chat, "reward": 0.5}, tmp_path)
    assert [item.reward for item in read] == [0.5] * (2 * turns)
    assert all(item.metadata == {} for item in read)
    assert len(filter_by_score(read, 0.5)) == 2 * turns


def test_a_tag_beside_an_agents_episode_judges_its_last_answer(tmp_path: Path) -> None:
    read = items({"messages": called("messages", "find", "Late."), "label": True}, tmp_path)
    assert [item.reward for item in read] == [None, 1.0]


def test_a_long_dialogue_of_hh_rlhf_is_a_chat(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2 + 3?\n\nAssistant:"
    better, worse = items({"chosen": f"{start} 5", "rejected": f"{start} 6"}, tmp_path)
    assert [message["content"] for message in better.messages or ()] == ["Hi", "Hello.", "2 + 3?"]
    assert (better.action, worse.action) == ("5", "6")


def test_alpaca_columns_are_one_question_with_its_history(tmp_path: Path) -> None:
    row = {
        "instruction": "Add.", "input": "2 3", "output": "5", "system": "Be brief.",
        "history": [["Hi", "Hello"]], "source": "x",
    }  # fmt: skip
    (item,) = items(row, tmp_path)
    assert [(message["role"], message["content"]) for message in item.messages or ()] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add.\n2 3"),
    ]  # fmt: skip
    assert (item.action, item.metadata) == ("5", {"source": "x"})


def test_a_system_column_that_is_not_used_is_kept(tmp_path: Path) -> None:
    row = {
        "system": "second",
        "messages": [
            {"role": "system", "content": "first"}, USER, {"role": "assistant", "content": "a"},
        ],
    }  # fmt: skip
    (item,) = items(row, tmp_path)
    assert item.metadata == {"system": "second"}
    assert (item.messages or ())[0]["content"] == "first"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "image"},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "document", "source": {"type": "text", "data": "x"}},
        {"type": "video", "video": "x.mp4"},
    ],
)
def test_media_stay_in_the_content(part: Json, tmp_path: Path) -> None:
    content = [{"type": "text", "text": "What is it?"}, part]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    }
    (item,) = items(row, tmp_path)
    assert item.messages == [{"role": "user", "content": content}]


def test_a_result_with_an_image_keeps_its_parts(tmp_path: Path) -> None:
    image = {"type": "image", "source": {"type": "base64", "data": ""}}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "see"}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [image], "is_error": True},
            ]},
            {"role": "assistant", "content": "A cat."},
        ]
    }  # fmt: skip
    answer = items(row, tmp_path)[-1]
    assert (answer.messages or ())[-1] == {
        "role": "tool", "tool_call_id": "c1", "content": [image], "is_error": True,
    }  # fmt: skip


def test_columns_that_a_table_fills_with_null_say_nothing(tmp_path: Path) -> None:
    filled = {"tool_calls": None, "tool_call_id": None, "name": None}
    row = {
        "messages": [{**USER, **filled}, {"role": "assistant", "content": "Sun.", **filled}],
        "tools": None,
        "kto_tag": None,
        "system": None,
    }
    (item,) = items(row, tmp_path)
    assert (item.messages, item.tools, item.metadata) == (None, None, {})
