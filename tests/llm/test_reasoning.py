"""Reasoning is taken out of an answer however it is marked, and nothing else is."""

from __future__ import annotations

import pytest

from orbiter.train.llm import Answer, ask
from orbiter.train.llm.reasoning import split_reasoning, strip_reasoning


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>Hm.\n\nA bird?</think>\n\nName a bird.", "Name a bird.", "Hm.\n\nA bird?"),
        ("Hm, a bird.\n</think>\n\nName a bird.", "Name a bird.", "Hm, a bird."),
        ("<think>\nstill thinking about", "", "still thinking about"),
        ("<think></think>Yes.", "Yes.", ""),
        ("<THINKING>a</THINKING>b", "b", "a"),
        ("<reasoning>a</reasoning>\nb", "b", "a"),
        ("[THINK]a[/THINK]b", "b", "a"),
        ("Sure.\n<think>a</think>\nName a bird.", "Sure.\nName a bird.", "a"),
        ("<think>a</think>b\n<think>c</think>d", "b\nd", "a\n\nc"),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
            "<|message|>Name a bird.<|return|>",
            "Name a bird.",
            "Hm.",
        ),
        ("<think>use `</think>`</think>ok", "`</think>ok", "use `"),
    ],
)
def test_reasoning_is_separated_however_it_is_marked(
    text: str, answer: str, reasoning: str
) -> None:
    assert split_reasoning(text) == (answer, reasoning)


@pytest.mark.parametrize(
    "text",
    [
        "Name a bird.",
        "  indented\n",
        "Write your thoughts inside <think> and </think> tags.",
        "Close it with `</think>`.",
        "```\n<think>\nan example\n</think>\n```",
        "<instructions>\nFormat:\n<think>\nreasons\n</think>\n</instructions>",
        "",
    ],
)
def test_what_is_no_reasoning_is_left_as_it_is(text: str) -> None:
    assert strip_reasoning(text) == text


async def test_a_model_of_any_kind_is_asked_without_its_reasoning() -> None:
    async def as_text(messages: object) -> str:
        return "<think>Hm.</think>Four."

    async def as_answer(messages: object) -> Answer:
        return Answer("<think>Hm.</think>Four.", completion_tokens=9)

    text, answer = await ask(as_text, []), await ask(as_answer, [])
    assert (text.text, text.reasoning) == ("Four.", "Hm.")
    assert (answer.text, answer.reasoning, answer.completion_tokens) == ("Four.", "Hm.", 9)
