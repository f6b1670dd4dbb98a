"""Ask for an answer as JSON of a given type, check it, and ask again if it does not fit.

    @dataclass
    class Verdict:
        score: Annotated[float, msgspec.Meta(ge=0, le=1)]
        reason: str

    found = await ask_for(model, messages, Verdict)

The shape is any type that msgspec knows: a dataclass, a TypedDict, list[str], with limits through
`msgspec.Meta`. An endpoint that can constrain answers to a schema receives it; every answer is
checked here all the same. Local models are not constrained by a grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.llm.chat import ChatModel, Shaping, ask
from orbiter.train.llm.reasoning import strip_reasoning

T = TypeVar("T")

MOST_REASKS = 2
"""Maximum number of repeated questions after answers that do not fit."""

MOST_FAILURES = 5_000
"""Opening brackets that may turn out not to start JSON before a long broken answer is abandoned."""

_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[{\[]")
_READER = json.JSONDecoder()


class UnfitAnswersError(DataError):
    """No answer fitted the type; asking may still have cost money."""

    def __init__(self, message: str, *, cost: float) -> None:
        """State what was wrong with the last answer, and the cost of all of them."""
        super().__init__(message)
        self.cost = cost


class Structured(NamedTuple, Generic[T]):
    """A value parsed from an answer, and how it was obtained."""

    value: T
    text: str
    """The answer that contained it."""
    reasks: int
    """Number of earlier answers that did not fit."""
    cost: float
    """Total over all answers."""


async def ask_for(
    model: ChatModel, messages: Sequence[Message], shape: type[T], *, reasks: int = MOST_REASKS
) -> Structured[T]:
    """Ask for a value of a type.

    Raises:
        UnfitAnswersError: no answer fitted; the message says what was wrong with the last one.
        CallbackError: the model raised.
    """
    schema = schema_of(shape)
    # Not every endpoint can, so the schema is in the prompt as well.
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
    """Return the last complete JSON value in an answer that fits the type.

    It may be anywhere: alone, in a code fence, in a sentence, inside another value. Reasoning is
    ignored. A value inside another one counts only if no outer value fits.

    Raises:
        DataError: the answer contains no JSON, or none that fits.
    """
    answer = strip_reasoning(text).strip()
    objection = ""
    for candidate in _candidates(answer):
        try:
            return msgspec.json.decode(candidate.encode("utf-8", "replace"), type=shape)
        except msgspec.ValidationError as error:
            # The whole answer may be a broken value that is also of the wrong type.
            if not objection and (candidate is not answer or _is_json(answer)):
                objection = f"the JSON does not fit: {error}"
        except (msgspec.DecodeError, RecursionError):
            continue
    raise DataError(objection or "there is no JSON in the answer")


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text.encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _candidates(answer: str) -> Iterator[str]:
    """Yield the possible JSON texts, in order of preference."""
    yield answer
    outer = list(_json_values(answer))
    for value in reversed(outer):
        yield value
    # Models reason first and give the value at the end, so the last one counts.
    for block in reversed(_FENCED.findall(answer)):
        yield block.strip()  # a bare number or text, recognisable only by its fence
    for value in reversed(outer):
        # Without the outer brackets, which would be found again.
        inner = list(_json_values(value[1:-1]))
        while inner:
            last = inner.pop()
            yield last
            inner.extend(_json_values(last[1:-1]))


def _json_values(text: str) -> Iterator[str]:
    """Yield the complete objects and arrays in a text, the outermost ones only."""
    position, failures = 0, 0
    while (opening := _OPENING.search(text, position)) and failures < MOST_FAILURES:
        start = opening.start()
        try:
            _, end = _READER.raw_decode(text, start)
        except (ValueError, RecursionError):
            position, failures = start + 1, failures + 1
        else:
            yield text[start:end]
            # After the whole value: what is inside it comes later, if no outer value fits.
            position = end


def _with_schema(messages: Sequence[Message], schema: Mapping[str, object]) -> list[Message]:
    """Add the schema to the last message, because many servers cannot enforce it."""
    text = msgspec.json.encode(schema).decode()
    *before, last = messages
    asked = f"{last.get('content')}\n\nAnswer with JSON alone, of this schema: {text}"
    return [*before, {**last, "content": asked}]
