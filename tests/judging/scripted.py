"""Scripted judge models that read the questions of the judges and answer by rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from orbiter.train.llm import Answer, Message

PRICE = 0.25


class Scorer:
    """A model that scores every attempt, or the one answer, by a function of its text."""

    def __init__(self, worth: Callable[[str], float], *, cost: float = PRICE) -> None:
        self.worth, self.cost = worth, cost
        self.asked: list[str] = []

    @property
    def name(self) -> str:
        return "scripted"

    @property
    def fingerprint(self) -> str:
        return "scripted"

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        question = str(messages[0]["content"])
        self.asked.append(question)
        return Answer(self.reply(question, messages), cost=self.cost)

    def reply(self, question: str, messages: Sequence[Message]) -> str:
        attempts = attempts_in(question)
        if not attempts:
            return json.dumps({"reason": "r", "score": self.worth(answer_in(question))})
        return scores(*map(self.worth, attempts))


class Replies(Scorer):
    """A model that gives these answers one after the other, the last one for ever."""

    def __init__(self, *replies: str) -> None:
        super().__init__(lambda text: 0.0)  # noqa: ARG005 - never asked
        self.replies = list(replies)

    def reply(self, question: str, messages: Sequence[Message]) -> str:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def attempts_in(question: str) -> list[str]:
    """Return the attempts in the order in which a group judge shows them."""
    return re.findall(r"Attempt \d+:\n<(?:text-\w+)>\n(.*?)\n</text-", question, re.DOTALL)


def answer_in(question: str) -> str:
    """Return the answer that a judge of single answers shows."""
    return question.split("\nAnswer:\n", 1)[1].split("\n\nGive a score", 1)[0]


def scores(*values: float) -> str:
    """Return a usable answer about a group."""
    fields = {f"attempt_{place}": value for place, value in enumerate(values, 1)}
    return json.dumps({"reason": "because", **fields})
