"""What servers make of OpenAI's chat completions beside what OpenAI does."""

from __future__ import annotations

from typing import Any

from orbiter.train.capture.wire.chat import assemble, reply

Anything = Any


def call(number: int, **more: object) -> dict[str, object]:
    function = {"name": "add", "arguments": f'{{"a": {number}}}'}
    return {"id": f"c{number}", "type": "function", "function": function, **more}


def piece(delta: Anything, index: int = 0, finish: str | None = None) -> Anything:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_calls_of_a_stream_without_an_index_stay_apart() -> None:
    first, second = ({"tool_calls": [call(number)]} for number in (1, 2))
    made = assemble([piece(first), piece(second, finish="tool_calls")])
    assert made.tool_calls == [call(1), call(2)]


def test_calls_and_choices_of_a_stream_come_in_their_order_whichever_came_first() -> None:
    late, early = ({"tool_calls": [call(at, index=at)]} for at in (1, 0))
    made = assemble(
        [piece({"content": "B"}, index=1), piece({"content": "A"}), piece(late), piece(early)]
    )
    assert made.text == "A"
    assert made.others == ["B"]
    assert made.tool_calls == [call(0), call(1)]


def test_every_count_of_tokens_is_kept() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    message = {"message": {"content": "x"}, "finish_reason": "stop"}
    assert reply({"choices": [message], "usage": usage}).usage == {
        "input_tokens": 9,
        "output_tokens": 5,
        "cached_tokens": 4,
        "reasoning_tokens": 3,
    }
