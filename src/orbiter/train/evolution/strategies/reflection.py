"""Asks a language model for better instructions, and checks its answer.

The model is shown the current text and the results on some failed tasks. It must mark
the new text, which must be complete, of bounded length, and must copy nothing from the tasks:
instructions that quote the training set score well on it and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import NamedTuple

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.llm.chat import Answer, ChatModel, ask
from orbiter.train.llm.reasoning import strip_reasoning

SYSTEM = (
    "You improve the instructions that a language-model agent works by. You see the present "
    "instructions and what happened on some tasks. Find out why it went wrong, and rewrite the "
    "instructions so that tasks of this kind go right, without giving up what works already. "
    "Write general rules; never quote a task or its answer. Reply with the complete new "
    "instructions between <instructions> and </instructions>."
)

ATTEMPTS = 3
"""Answers asked for, each with the objection to the one before, until a rewriting has failed."""

_OPEN, _CLOSE = "<instructions>", "</instructions>"
_MARKED = re.compile(rf"{_OPEN}\s*(.*?)\s*{_CLOSE}", re.DOTALL)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a rewritten text."""

    max_chars: int
    """The longest text allowed."""
    copied_words: int
    """This many words in a row from a task are a copy."""

    def objection(self, text: str, before: str, tasks: Iterable[str]) -> str | None:
        """Return the problem with a text, or None."""
        if not text:
            return "the instructions are empty"
        if len(text) > self.max_chars:
            return f"{len(text)} characters are too long; the limit is {self.max_chars}"
        # Only what the rewriting added: the text before it may quote a task on purpose.
        new = _runs(text, self.copied_words) - _runs(before, self.copied_words)
        for task in tasks if new else ():
            copied = new & _runs(task, self.copied_words)
            if copied:
                return f"this is copied from a task: {' '.join(sorted(copied)[0])!r}"
        return None


class Rewriting(NamedTuple):
    """A new text, and the cost of asking for it."""

    text: str
    cost: float


class UnusableRewriteError(DataError):
    """The model wrote no usable text; asking cost something all the same."""

    def __init__(self, message: str, *, cost: float) -> None:
        """State what was wrong with the last answer, and the cost of all of them."""
        super().__init__(message)
        self.cost = cost


async def rewrite(
    model: ChatModel,
    text: str,
    traces: Sequence[str],
    *,
    purpose: str,
    limits: Limits,
    tasks: Sequence[str],
) -> Rewriting:
    """Return a better text, and the cost of asking for it.

    Raises:
        UnusableRewriteError: even the last answer was cut off, not marked, empty, too long, or a
            copy of a task.
        CallbackError: the model raised.
    """
    messages: list[Message] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": _question(text, traces, purpose, limits)},
    ]
    cost, objection = 0.0, ""
    for _ in range(ATTEMPTS):
        answer: Answer = await ask(model, messages)
        cost += answer.cost
        proposal = instructions_in(answer.text)
        if proposal is None:
            # Some servers call a cut-off answer "stop", but the opened mark shows it.
            cut_off = answer.finish_reason == "length" or _OPEN in answer.text
            objection = (
                "the answer was cut off before </instructions>; write shorter ones"
                if cut_off
                else "there is no text between <instructions> and </instructions>"
            )
        else:
            objection = limits.objection(proposal, text, tasks) or ""
            if not objection:
                return Rewriting(proposal, cost)
        messages += [
            # The model sees its own answer with the objection, which a fresh question would only
            # repeat.
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": f"Not yet: {objection}. Write them again."},
        ]
    raise UnusableRewriteError(
        f"no usable instructions after {ATTEMPTS} answers: {objection}", cost=cost
    )


SOLUTION_FIELDS = frozenset(
    {
        "answer", "answers", "correct", "correct_answer", "expected", "expected_output", "gold",
        "golden", "ground_truth", "label", "labels", "output", "reference", "solution", "target",
        "targets",
    }
)  # fmt: skip
"""Fields of an instance that name its solution; the reflecting model is not shown them."""


def shown_input(instance: object) -> str:
    """Return the text of an instance without its solution."""
    state = getattr(instance, "state", None)
    if isinstance(state, str) and hasattr(instance, "action"):  # a TrajectoryItem
        return state
    if is_dataclass(instance) and not isinstance(instance, type):
        parts = {f.name: getattr(instance, f.name) for f in fields(instance)}
    elif isinstance(instance, Mapping):
        parts = {str(name): value for name, value in instance.items()}
    else:
        return str(instance)
    # If every field names a solution, all are shown: the input would be empty otherwise.
    kept = {name: value for name, value in parts.items() if name.lower() not in SOLUTION_FIELDS}
    return "\n".join(f"{name}: {value}" for name, value in (kept or parts).items())


def instructions_in(answer: str) -> str | None:
    """Return the text that the last complete pair of marks encloses, or None without one.

    None, too, if another mark is opened after it and not closed: the answer was cut off. A pair
    that begins a line is preferred to one in a sentence, which may only mention the marks.
    """
    # A reasoning model mentions the marks while it thinks.
    text = strip_reasoning(answer)
    marks = [(_begins_line(text, match.start()), match) for match in _MARKED.finditer(text)]
    if not marks:
        return None
    last = [match for begins, match in marks if begins] or [match for _, match in marks]
    for opened in re.finditer(_OPEN, text[marks[-1][1].end() :]):
        if _begins_line(text, marks[-1][1].end() + opened.start()):
            return None
    return last[-1][1].strip()


def _begins_line(text: str, position: int) -> bool:
    return not text[:position].rpartition("\n")[2].strip()


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
    # Empty for a text shorter than `length` words: it is too short to be a copy.
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
