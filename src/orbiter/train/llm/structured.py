"""An answer that is a value: asked for as JSON, checked, and asked for again with the objection.

    @dataclass
    class Verdict:
        score: Annotated[float, msgspec.Meta(ge=0, le=1)]
        reason: str

    found = await ask_for(model, messages, Verdict)

The shape is any type that msgspec knows: a dataclass, a TypedDict, list[str], with limits through
`msgspec.Meta`. The server is told the schema where it can hold to it; every answer is checked here
all the same. Left out: grammars for local models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.llm.chat import ChatModel, Shaping, ask

T = TypeVar("T")

MOST_REASKS = 2
"""Further questions after an answer that does not fit."""

_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)


class UnfitAnswersError(DataError):
    """No answer fitted the shape, and asking has cost something all the same."""

    def __init__(self, message: str, *, cost: float) -> None:
        """Say what was wrong with the last one, and what all of them have cost."""
        super().__init__(message)
        self.cost = cost


class Structured(NamedTuple, Generic[T]):
    """A value that a model gave, and what that took."""

    value: T
    text: str
    """The answer that held it."""
    reasks: int
    """Answers before it that did not fit."""
    cost: float
    """Of all answers together."""


async def ask_for(
    model: ChatModel, messages: Sequence[Message], shape: type[T], *, reasks: int = MOST_REASKS
) -> Structured[T]:
    """Ask for a value of a type.

    Raises:
        UnfitAnswersError: no answer fitted; the message says what was wrong with the last one.
        CallbackError: the model raised.
    """
    schema = schema_of(shape)
    asked = model.shaped(schema) if isinstance(model, Shaping) else model
    talk = _with_schema(messages, schema)
    cost, objection = 0.0, ""
    for again in range(reasks + 1):
        answer = await ask(asked, talk)
        cost += answer.cost
        try:
            return Structured(value_in(answer.text, shape), answer.text, again, cost)
        except DataError as error:
            objection = str(error)
        talk = [
            *talk,
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": f"{objection}. Answer again, with the JSON alone."},
        ]
    raise UnfitAnswersError(f"no usable JSON after {reasks + 1} answers: {objection}", cost=cost)


def schema_of(shape: Any) -> dict[str, object]:  # noqa: ANN401 - any type that msgspec knows
    """Return the JSON schema of a type."""
    return msgspec.json.schema(shape)


def value_in(text: str, shape: type[T]) -> T:
    """Return the value that an answer holds, whatever stands around its JSON.

    Raises:
        DataError: there is no JSON in it, or none of this shape.
    """
    objection = "there is no JSON in the answer"
    for candidate in _candidates(text):
        try:
            return msgspec.json.decode(candidate.encode("utf-8", "replace"), type=shape)
        except msgspec.ValidationError as error:
            objection = f"the JSON does not fit: {error}"
        except msgspec.DecodeError:
            continue
    raise DataError(objection)


def _candidates(text: str) -> list[str]:
    """Return what may be the JSON: all of it, a code fence, the outermost braces or brackets."""
    found = [text.strip(), *(inside.strip() for inside in _FENCED.findall(text))]
    for opening, closing in ("{}", "[]"):
        first, last = text.find(opening), text.rfind(closing)
        if 0 <= first < last:
            found.append(text[first : last + 1])
    return found


def _with_schema(messages: Sequence[Message], schema: Mapping[str, object]) -> list[Message]:
    """Add the schema to the last turn: not every server can be told, and no model minds."""
    text = msgspec.json.encode(schema).decode()
    *before, last = messages
    asked = f"{last.get('content')}\n\nAnswer with JSON alone, of this schema: {text}"
    return [*before, {**last, "content": asked}]
