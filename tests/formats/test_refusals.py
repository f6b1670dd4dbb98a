"""A bad record is refused by file, line and the word that is wrong; it never becomes an item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orbiter.train.errors import DataError
from orbiter.train.formats import check, read
from orbiter.train.json_files.source import Skipped

Json = Any
USER = {"role": "user", "content": "2 + 3?"}
ANSWER = {"role": "assistant", "content": "5"}
HUMAN = {"from": "human", "value": "2 + 3?"}
GPT = {"from": "gpt", "value": "5"}
PAIR = {"chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "6"}]}


class Case(NamedTuple):
    """A row of a file, and a part of the message that refuses it."""

    row: Json
    message: str


def messages(*given: Json) -> dict[str, Json]:
    return {"messages": [USER, *given]}


def block(**given: Json) -> dict[str, Json]:
    return messages({"role": "assistant", "content": [{"type": "text", "text": "x"}, given]})


def call(given: Json) -> dict[str, Json]:
    return messages({"role": "assistant", "content": None, "tool_calls": [given]})


def turns(*given: Json) -> dict[str, Json]:
    return {"conversations": [HUMAN, *given]}


def dpo(**given: Json) -> dict[str, Json]:
    good = {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [{"role": "assistant", "content": "6"}],
    }
    return {**good, **given}


def atif(*steps: Json, **root: Json) -> dict[str, Json]:
    agent = {"name": "a", "version": "1"}
    start = {"step_id": 1, "source": "user", "message": "hi"}
    good = {"schema_version": "ATIF-v1.7", "session_id": "s", "agent": agent}
    return {**good, "steps": [start, *steps], **root}


def otlp(given: Json, *, scopes: Json = None) -> dict[str, Json]:
    scope = {"scopeSpans": [{"spans": given}] if scopes is None else scopes}
    return {"resourceSpans": [scope]}


def attribute(key: str, value: str) -> dict[str, Json]:
    return {"key": key, "value": {"stringValue": value}}


SPAN = {
    "traceId": "t",
    "spanId": "s",
    "attributes": [
        attribute("gen_ai.operation.name", "chat"),
        attribute("gen_ai.input.messages", '[{"role": "user", "content": "hi"}]'),
        attribute("gen_ai.output.messages", '[{"role": "assistant", "content": "hello"}]'),
    ],
}
GOOD: dict[str, Json] = {
    "openai-chat": messages(ANSWER),
    "trl-messages": messages(ANSWER),
    "openai-dpo": dpo(),
    "sharegpt": turns(GPT),
    "trl-prompt-completion": {"prompt": "a", "completion": "b"},
    "trl-preference": {"prompt": [USER], **PAIR},
    "trl-unpaired": {"prompt": "a", "completion": "b", "label": True},
    "alpaca": {"instruction": "2 + 3?", "input": "", "output": "5"},
    "atif": atif({"step_id": 2, "source": "agent", "message": "hello"}),
    "jsonl": {"state": "s", "action": "a", "reward": 1.0},
    "otel": otlp([SPAN]),
}

CHATS = [
    Case({"messages": []}, "messages is empty"),
    Case({"messages": None}, "messages must be a list"),
    Case({"messages": "hi"}, "messages must be a list of messages, got 'hi'"),
    Case({"messages": {"role": "user", "content": "x"}}, "messages must be a list"),
    Case({"messages": 3}, "messages must be a list"),
    Case(messages("hi"), "messages[1] must be an object, got 'hi'"),
    Case(messages(None), "messages[1] must be an object, got None"),
    Case(messages([ANSWER]), "messages[1] must be an object"),
    Case(messages({"content": "5"}), "messages[1] must have a role"),
    Case(messages({}), "messages[1] must have a role"),
    Case(messages({"role": None, "content": "5"}), "messages[1] must have a role, got None"),
    Case(messages({"role": 3, "content": "5"}), "messages[1] must have a role, got 3"),
    Case(messages({"role": "critic", "content": "5"}), "messages[1]: unknown role 'critic'"),
    Case(messages({"role": "asistant", "content": "5"}), "did you mean 'assistant'"),
    Case(messages({"role": "usr", "content": "5"}), "messages[1]: unknown role 'usr'"),
    Case(messages({"role": "", "content": "5"}), "messages[1]: unknown role ''"),
    Case(messages({"role": "moderator", "content": "5"}), "unknown role 'moderator'"),
    Case(messages({"role": "user"}), "messages[1] has no content"),
    Case(messages({"role": "user", "content": None}), "messages[1] has no content"),
    Case(messages({"role": "user", "text": "hi"}), "messages[1] has no content"),
    Case(messages({"role": "system", "content": None}), "messages[1] has no content"),
    Case(messages({"role": "assistant"}), "messages[1] has neither content nor calls"),
    Case(messages({"role": "user", "content": 3}), "content must be text or parts, got 3"),
    Case(messages({"role": "user", "content": {"a": 1}}), "content must be text or parts"),
    Case(messages({"role": "user", "content": [3]}), "messages[1].content[0] must be text"),
    Case(messages({"role": "user", "content": [None]}), "messages[1].content[0] must be text"),
    Case(block(type="hologram"), "messages[1].content[1]: unknown block type 'hologram'"),
    Case(block(type="tool_usage", name="f"), "did you mean 'tool_use'"),
    Case(block(type=None), "messages[1].content[1]: unknown block type None"),
    Case(block(type=[]), "messages[1].content[1]: unknown block type []"),
    Case(block(type={}), "messages[1].content[1]: unknown block type {}"),
    Case(call({"type": [], "name": "f"}), "its type must be text"),
    Case(call({"type": {}, "function": {"name": "f"}}), "its type must be text"),
    Case(block(type=3), "messages[1].content[1]: unknown block type 3"),
    Case(block(), "messages[1].content[1]: unknown block type None"),
    Case(block(functionCall={"name": "f"}), "unknown block type None"),
    Case(block(type="text"), "messages[1].content[1]: a text block must have a text"),
    Case(block(type="text", text=3), "a text block must have a text"),
    Case(block(type="text", text=None), "a text block must have a text"),
    Case(block(type="tool_use", input={}), "messages[1].content[1]: unknown call"),
    Case(block(type="tool_use", name="", input={}), "a call must name its tool, got ''"),
    Case(block(type="tool_use", name=3, input={}), "messages[1].content[1]: unknown call"),
    Case(block(type="thinking", thinking=3), "messages[1].content[1]: reasoning must be text"),
    Case(
        block(type="tool_result", content=[{"type": "hologram"}]),
        "messages[1].content[1].content[0]: unknown block type 'hologram'",
    ),
    Case(
        block(type="tool_result", content=[{"type": "tool_use", "name": "f"}]),
        "a tool result cannot hold calls",
    ),
    Case(
        messages({"role": "user", "content": [{"type": "tool_use", "name": "f", "input": {}}]}),
        "only the assistant calls tools and reasons, not user",
    ),
    Case(
        messages({"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}),
        "only the assistant calls tools and reasons, not user",
    ),
    Case(call("f"), "messages[1].tool_calls[0] must be a call, got 'f'"),
    Case(call(None), "messages[1].tool_calls[0] must be a call"),
    Case(call({}), "messages[1].tool_calls[0]: unknown call"),
    Case(call({"id": "c"}), "messages[1].tool_calls[0]: unknown call"),
    Case(call({"type": "function"}), "messages[1].tool_calls[0]: unknown call"),
    Case(call({"type": "teleport", "to": "x"}), "messages[1].tool_calls[0]: unknown call"),
    Case(call({"type": "function", "function": "f"}), "tool_calls[0]: unknown call"),
    Case(call({"type": "function", "function": {}}), "a call must name its tool, got None"),
    Case(call({"function": {"name": "", "arguments": "{}"}}), "must name its tool, got ''"),
    Case(call({"function": {"name": 3, "arguments": "{}"}}), "must name its tool, got 3"),
    Case(call({"type": "custom", "custom": {"name": "x"}}), "input of a custom call must be text"),
    Case(call({"type": "custom", "custom": {"input": "x"}}), "a call must name its tool"),
    Case(messages({**ANSWER, "tool_calls": {"a": 1}}), "tool_calls must be a list"),
    Case(messages({**ANSWER, "tool_calls": 3}), "tool_calls must be a list of objects, got 3"),
    Case(messages({**ANSWER, "tool_calls": "no"}), "messages[1]: tool_calls must be a list"),
    Case(messages({"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}), "not user"),
    Case(messages({**ANSWER, "function_call": "f()"}), "messages[1].function_call must be a call"),
    Case(messages({**ANSWER, "function_call": {"arguments": "{}"}}), "function_call: unknown call"),
    Case(messages({"role": "tool_call", "content": "f(x)"}), "must be a call as JSON"),
    Case(messages({"role": "tool_call", "content": "[]"}), "must be a call, or a list of calls"),
    Case(messages({"role": "tool_call", "content": '{"a": 1}'}), "messages[1].content: unknown"),
    Case(messages({"role": "function_call", "content": None}), "messages[1].content must be a"),
    Case(messages({**ANSWER, "weight": 2}), "messages[1]: weight must be 0 or 1, got 2"),
    Case(messages({**ANSWER, "weight": "1"}), "weight must be 0 or 1"),
    Case({**messages(ANSWER), "tools": "x"}, "tools must be a list: not JSON"),
    Case({**messages(ANSWER), "tools": 3}, "tools must be a list of objects, got 3"),
    Case({**messages(ANSWER), "tools": ["f"]}, "tools must be a list of objects"),
    Case({**messages(ANSWER), "tools": [{}]}, "tools[0] has neither a name nor a type"),
    Case({**messages(ANSWER), "functions": [{}]}, "functions[0] has neither a name"),
    Case({**messages(ANSWER), "system": [{"type": "hologram"}]}, "unknown block type 'hologram'"),
    Case({**messages(), "label": True}, "label is about the last answer"),
    Case({**messages(ANSWER), "kto_tag": "yes"}, "kto_tag must be true or false, got 'yes'"),
    Case({**messages({**ANSWER, "content": ""}), "kto_tag": True}, "kto_tag calls it good"),
    Case({**messages(), "rejected_response": "6"}, "messages must end with the answer"),
    Case({**messages(ANSWER), "rejected_messages": [USER]}, "holds no answer of the assistant"),
    Case({**messages(ANSWER), "rejected_response": {"role": "critic"}}, "unknown role 'critic'"),
]

SHAREGPT = [
    Case({"conversations": []}, "conversations is empty"),
    Case({"conversations": None}, "conversations must be a list of objects"),
    Case({"conversations": "hi"}, "conversations must be a list of objects, got 'hi'"),
    Case({"conversations": {}}, "conversations must be a list of objects"),
    Case(turns("hi"), "conversations must be a list of objects"),
    Case(turns({}), "conversations[1] must have a speaker in 'from'"),
    Case(turns({"value": "5"}), "conversations[1] must have a speaker in 'from'"),
    Case(turns({"from": None, "value": "5"}), "conversations[1] must have a role, got None"),
    Case(turns({"from": 3, "value": "5"}), "conversations[1] must have a role, got 3"),
    Case(turns({"from": "claude-9", "value": "5"}), "conversations[1]: unknown role 'claude-9'"),
    Case(turns({"from": "gtp", "value": "5"}), "did you mean 'gpt'"),
    Case(turns({"from": "gpt"}), "conversations[1]: value must be a text, got None"),
    Case(turns({"from": "gpt", "value": 3}), "conversations[1]: value must be a text, got 3"),
    Case(turns({"from": "gpt", "value": ["5"]}), "conversations[1]: value must be a text"),
    Case(turns({"from": "function_call", "value": "f()"}), "conversations[1].value must be a call"),
    Case(turns({"from": "function_call", "value": "[]"}), "conversations[1].value must be a call"),
    Case(turns({"from": "function_call", "value": "{}"}), "conversations[1].value: unknown call"),
    Case(turns({"from": "function_call", "value": "3"}), "conversations[1].value must be a call"),
    Case(
        turns({"from": "function_call", "value": '{"name": "f", "name": "g"}'}),
        "key 'name' is repeated",
    ),
    Case(
        turns({"from": "function_call", "value": '[{"name": "f"}, {"arguments": {}}]'}),
        "conversations[1].value[1]: unknown call",
    ),
    Case(
        turns({"from": "observation", "value": "x", "tool_call_ids": ["a", "b"]}),
        "conversations[1]",
    ),
    Case(turns({"role": "critic", "content": "x"}), "unknown role 'critic'"),
    Case({**turns(GPT), "tools": "[{}]"}, "tools[0] has neither a name nor a type"),
    Case({**turns(GPT), "kto_tag": 1}, "kto_tag must be true or false, got 1"),
    Case({**turns(), "kto_tag": True}, "kto_tag is about the last answer"),
    Case({**turns(), "chosen": GPT}, "rejected"),
    Case({**turns(), "chosen": GPT, "rejected": HUMAN}, "rejected holds no answer"),
    Case({**turns(), "chosen": {**GPT, "value": ""}, "rejected": GPT}, "chosen is empty"),
    Case({**turns(), "chosen": {"from": "gpt"}, "rejected": GPT}, "chosen: value must be a text"),
    Case({**turns(), "chosen": {"from": "x", "value": "a"}, "rejected": GPT}, "unknown role 'x'"),
    Case({**turns(), "chosen": [], "rejected": GPT}, "chosen is empty"),
]

DPO = [
    Case(dpo(input=None), "input must be an object with messages, got None"),
    Case(dpo(input="hi"), "input must be an object with messages, got 'hi'"),
    Case(dpo(input={}), "input.messages must be a list of messages"),
    Case(dpo(input={"messages": []}), "input.messages is empty"),
    Case(dpo(input={"messages": [{"content": "x"}]}), "input.messages[0] must have a role"),
    Case(dpo(input={"messages": [USER], "tools": [{}]}), "tools[0] has neither a name nor a type"),
    Case(dpo(preferred_output=[]), "preferred_output is empty"),
    Case(dpo(preferred_output=None), "preferred_output must be a list of messages"),
    Case(dpo(preferred_output=3), "preferred_output must be a list of messages, got 3"),
    Case(dpo(preferred_output=""), "preferred_output is empty"),
    Case(dpo(preferred_output=[USER]), "preferred_output holds no answer of the assistant"),
    Case(dpo(preferred_output=[{**ANSWER, "content": ""}]), "preferred_output is empty"),
    Case(dpo(preferred_output=[{"role": "assistant"}]), "neither content nor calls"),
    Case(dpo(non_preferred_output=[]), "non_preferred_output is empty"),
    Case(dpo(non_preferred_output=[{"role": "x"}]), "non_preferred_output[0]: unknown role 'x'"),
]

PREFERENCE = [
    Case({"chosen": "a", "rejected": "b"}, "a column with the prompt is needed"),
    Case({"chosen": "", "rejected": ""}, "a column with the prompt is needed"),
    Case({"prompt": [], **PAIR}, "prompt is empty"),
    Case({"prompt": 3, **PAIR}, "prompt must be a list of messages, got 3"),
    Case({"prompt": [{"role": "x", "content": ""}], **PAIR}, "prompt[0]: unknown role 'x'"),
    Case({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen is empty"),
    Case({"prompt": "q", "chosen": [], "rejected": "b"}, "chosen is empty"),
    Case({"prompt": "q", "chosen": "a", "rejected": []}, "rejected is empty"),
    Case({"prompt": "q", "chosen": "a", "rejected": None}, "rejected must be a list"),
    Case({"prompt": "q", "chosen": 1, "rejected": 2}, "chosen must be a list of messages, got 1"),
    Case({"prompt": "q", "chosen": [USER], "rejected": "b"}, "chosen holds no answer"),
    Case({**PAIR, "prompt": None}, "have no common start"),
    Case({"instruction": 3, "chosen": "a", "rejected": "b"}, "instruction must be a text, got 3"),
    Case({"instruction": "", "chosen": "a", "rejected": "b"}, "instruction is empty"),
    Case(
        {"chosen": "\n\nHuman: hi\n\nAssistant:", "rejected": "\n\nHuman: hi\n\nAssistant: x"},
        "chosen holds no answer",
    ),
    Case(
        {"chosen": "Assistant: x", "rejected": "\n\nHuman: hi\n\nAssistant: x"},
        "a column with the prompt is needed",
    ),
]

OTHERS: dict[str, list[Case]] = {
    "openai-chat": CHATS,
    "sharegpt": SHAREGPT,
    "openai-dpo": DPO,
    "trl-preference": PREFERENCE,
    "trl-messages": [
        Case({"messages": []}, "messages is empty"),
        Case(messages({"role": "narrator", "content": "x"}), "unknown role 'narrator'"),
        Case(block(type="hologram"), "unknown block type 'hologram'"),
    ],
    "trl-prompt-completion": [
        Case({"prompt": None, "completion": "b"}, "prompt must be a text or a list of messages"),
        Case({"prompt": [], "completion": "b"}, "prompt is empty"),
        Case({"prompt": 3, "completion": "b"}, "prompt must be a list of messages"),
        Case({"prompt": [{"content": "x"}], "completion": "b"}, "prompt[0] must have a role"),
        Case({"prompt": "a", "completion": []}, "completion is empty"),
        Case({"prompt": "a", "completion": 3}, "completion must be a list of messages, got 3"),
        Case({"prompt": "a", "completion": [USER]}, "completion holds no answer of the assistant"),
        Case({"prompt": "a", "completion": [{"role": "x"}]}, "completion[0]: unknown role 'x'"),
    ],
    "trl-unpaired": [
        Case({"prompt": "a", "completion": "b", "label": None}, "label must be true or false"),
        Case({"prompt": "a", "completion": "b", "label": 1}, "label must be true or false, got 1"),
        Case({"prompt": "a", "completion": "b", "label": "yes"}, "label must be true or false"),
        Case({"prompt": "a", "completion": "", "label": True}, "completion is empty"),
        Case({"prompt": "a", "completion": [], "label": False}, "completion is empty"),
        Case({"prompt": None, "completion": "b", "label": True}, "prompt must be a text"),
    ],
    "alpaca": [
        Case({"instruction": "", "input": "", "output": "5"}, "instruction is empty"),
        Case({"instruction": 3, "output": "5"}, "instruction must be a text, got 3"),
        Case({"instruction": "a", "input": [], "output": ""}, "output must be a text that is not"),
        Case({"instruction": "a", "output": None}, "output must be a text that is not empty"),
        Case({"instruction": "a", "output": 5}, "output must be a text that is not empty, got 5"),
        Case({"instruction": "a", "input": 5, "output": "x"}, "input must be a text, got 5"),
        Case({"instruction": "a", "output": "x", "history": -1}, "history must be a list of pairs"),
        Case({"instruction": "a", "output": "x", "history": [["q"]]}, "history[0] must be"),
        Case({"instruction": "a", "output": "x", "history": [["q", 1]]}, "history[0] must be"),
        Case({"instruction": "a", "output": "x", "kto_tag": "no"}, "kto_tag must be true or false"),
        Case({"instruction": "a", "chosen": "", "rejected": "b"}, "chosen is empty"),
        Case({"instruction": "a", "chosen": "b"}, "rejected must be a list"),
    ],
    "otel": [
        Case({"resourceSpans": "x"}, "resourceSpans must be a list"),
        Case({"resourceSpans": {}}, "resourceSpans must be a list"),
        Case({"resourceSpans": 3}, "resourceSpans must be a list"),
        Case(otlp([], scopes="x"), "scopeSpans must be a list"),
        Case(otlp("x"), "spans must be a list"),
        Case(otlp([3]), "got int"),
    ],
    "jsonl": [
        Case({"state": "s"}, "action"),
        Case({"state": "s", "action": "a", "reward": "1"}, "reward"),
        Case({"state": "s", "action": "a", "reward": 1, "rewrd": 1}, "rewrd"),
        Case({"state": None, "action": "a", "reward": 1}, "state"),
        Case({"state": "s", "action": "a", "reward": 1, "messages": ["x"]}, "messages"),
        Case({"state": "s", "action": "a", "reward": 1, "step": 1.5}, "step"),
    ],
    "atif": [
        Case(atif(schema_version="ATIF-v2.0"), "field 'schema_version': expected one of"),
        Case(atif(steps="x"), "field 'steps': expected a list of objects"),
        Case(atif(steps=[3]), "field 'steps': expected a list of objects"),
        Case(atif(agent=3), "field 'agent': expected an object, got 3"),
        Case(atif({"step_id": 2, "source": "critic", "message": "x"}), "steps[1]: field 'source'"),
        Case(atif({"step_id": 2, "message": "x"}), "steps[1]: field 'source'"),
        Case(atif({"step_id": 2, "source": "agent", "message": 3}), "steps[1]: field 'message'"),
        Case(
            atif({"step_id": 2, "source": "agent", "message": "x", "tool_calls": 3}),
            "steps[1]: field 'tool_calls'",
        ),
    ],
}

RAW: dict[str, list[tuple[str, str]]] = {
    "openai-chat": [
        ('{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}', "key 'role' is"),
        ('{"messages": [], "messages": [{"role": "user", "content": "x"}]}', "key 'messages' is"),
        ('{"messages": [{"role": "user", "content": "x", "content" : "y"}]}', "key 'content' is"),
        ('{"messages": [{"role": "user", "content": "a: b", "c\\u003a": 1, "c:": 2}]}', "'c:' is"),
        ('{"messages": [{"role": "user", "content": "x"}]', "not JSON"),
        ('{"messages": NaN}', "not JSON"),
        ("[]", "expected an object"),
        ("3", "expected an object, got 3"),
        ("null", "expected an object, got None"),
        ('"text"', "expected an object, got 'text'"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    ],
    "sharegpt": [
        ('{"conversations": [{"from": "human", "from": "gpt", "value": "x"}]}', "key 'from' is"),
        ('{"conversations": [{"from": "human"', "not JSON"),
    ],
    "openai-dpo": [
        (
            '{"input": {"messages": [{"role": "user", "content": "x"}]}, "preferred_output": "a",'
            ' "preferred_output": "b", "non_preferred_output": "c"}',
            "key 'preferred_output' is",
        ),
    ],
    "trl-preference": [
        ('{"prompt": "q", "chosen": "a", "chosen": "b", "rejected": "c"}', "key 'chosen' is"),
    ],
    "trl-unpaired": [
        ('{"prompt": "q", "completion": "a", "label": true, "label": false}', "key 'label' is"),
    ],
    "trl-prompt-completion": [
        ('{"prompt": "q", "prompt": "r", "completion": "a"}', "key 'prompt' is"),
    ],
    "alpaca": [('{"instruction": "a", "output": "b", "output": "c"}', "key 'output' is")],
    "jsonl": [('{"state": "s", "action": "a", "action": "b", "reward": 1}', "'action'")],
    "atif": [(json.dumps(atif())[:-1] + ', "steps": []}', "key 'steps' is")],
}


def cases() -> Iterator[Any]:
    for name, given in OTHERS.items():
        for number, case in enumerate(given):
            yield pytest.param(name, json.dumps(case.row), case.message, id=f"{name}-{number}")
    for name, texts in RAW.items():
        for number, (text, message) in enumerate(texts):
            yield pytest.param(name, text, message, id=f"{name}-raw-{number}")


def test_there_are_enough_cases() -> None:
    assert len(list(cases())) >= 150


@pytest.mark.parametrize(("name", "text", "message"), list(cases()))
def test_a_bad_record_is_refused_by_line_and_cause(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    good = json.dumps(GOOD[name])
    path.write_text(f"{good}\n{text}\n{good}\n")
    with pytest.raises(DataError) as refusal:
        list(read(path, name))
    assert str(refusal.value).startswith(f"{path}:2: ")
    assert message in str(refusal.value)
    skipped: list[Skipped] = []
    alone = tmp_path / "good.jsonl"
    alone.write_text(f"{good}\n")
    kept = list(read(path, name, on_error="skip", skipped=skipped))
    assert len(kept) == 2 * len(list(read(alone, name)))
    assert [problem.line for problem in skipped] == [2]
    assert [problem.line for problem in check(path, name).problems] == [2]


@pytest.mark.parametrize("name", sorted(RAW))
def test_a_repeated_key_in_an_array_hides_no_other_element(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    good = json.dumps(GOOD[name])
    repeated = next(text for text, message in RAW[name] if "is" in message or name == "jsonl")
    path.write_text(f"[{good},\n{repeated},\n{good}]")
    form = "json" if name == "jsonl" else name
    report = check(path, form)
    assert [problem.line for problem in report.problems] == [2]
    assert report.items >= 2
