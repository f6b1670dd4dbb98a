"""Asking a language model for better instructions, and checking what it wrote.

The model is shown the present text and what happened on some tasks that went wrong. What it writes
back must be a text of bounded length that copies nothing from the tasks: instructions that quote
the training set score well on it and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.llm.chat import Answer, ChatModel, ask

SYSTEM = (
    "You improve the instructions that a language-model agent works by. You see the present "
    "instructions and what happened on some tasks. Find out why it went wrong, and rewrite the "
    "instructions so that tasks of this kind go right, without giving up what works already. "
    "Write general rules; never quote a task or its answer. Reply with the complete new "
    "instructions between <instructions> and </instructions>."
)

ATTEMPTS = 3
"""How often the model is asked, the objections to its last answer in hand, before it has failed."""

_MARKED = re.compile(r"<instructions>\s*(.*?)\s*</instructions>", re.DOTALL)
_FENCED = re.compile(r"```[^\n]*\n(.*?)\n?```", re.DOTALL)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rewritten text must keep to."""

    max_chars: int
    """Length of one text."""
    copied_words: int
    """So many words in a row out of a task are a copy."""

    def objection(self, text: str, before: str, tasks: Iterable[str]) -> str | None:
        """Return what is wrong with a text, or None."""
        if not text:
            return "the instructions are empty"
        if len(text) > self.max_chars:
            return f"{len(text)} characters are too long: {self.max_chars} at most"
        new = _runs(text, self.copied_words) - _runs(before, self.copied_words)
        for task in tasks if new else ():
            copied = new & _runs(task, self.copied_words)
            if copied:
                return f"this is copied from a task: {' '.join(sorted(copied)[0])!r}"
        return None


async def rewrite(
    model: ChatModel,
    text: str,
    traces: Sequence[str],
    *,
    purpose: str,
    limits: Limits,
    tasks: Sequence[str],
) -> tuple[str, float]:
    """Return a better text, and what asking for it cost.

    Raises:
        DataError: the model's last answer, too, was empty, too long, or a copy of a task.
        CallbackError: the model raised.
    """
    messages: list[Message] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": _question(text, traces, purpose, limits)},
    ]
    cost, objection = 0.0, None
    for _ in range(ATTEMPTS):
        answer: Answer = await ask(model, messages)
        cost += answer.cost
        proposal = instructions_in(answer.text)
        objection = limits.objection(proposal, text, tasks)
        if objection is None:
            return proposal, cost
        messages += [
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": f"Not yet: {objection}. Write them again."},
        ]
    raise DataError(f"no usable instructions after {ATTEMPTS} answers: {objection}")


def instructions_in(answer: str) -> str:
    """Return what stands between the marks, else in a code fence, else the whole answer."""
    marked = _MARKED.findall(answer) or _FENCED.findall(answer)
    return marked[-1].strip() if marked else answer.strip()


def _question(text: str, traces: Sequence[str], purpose: str, limits: Limits) -> str:
    parts = [f"The present instructions{purpose}:\n<instructions>\n{text}\n</instructions>"]
    if traces:
        parts.append("What happened with them:\n\n" + "\n\n".join(traces))
    else:
        parts.append("They have not been tried yet. Write a version that may work better.")
    parts.append(f"Write the new instructions, {limits.max_chars} characters at most.")
    return "\n\n".join(parts)


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
