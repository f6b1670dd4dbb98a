"""What asking a language model means here: messages in, an answer out, and nothing about whose.

Any async callable from messages to a text or an `Answer` is a model: a remote one, a local one, a
scripted one in a test. Left out: streaming; what asks here wants the whole answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError, boundary


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, and what that took."""

    text: str
    prompt_tokens: int | None = None
    """Tokens read; None where the model did not say."""
    completion_tokens: int | None = None
    """Tokens written; None where the model did not say."""
    cost: float = 0.0
    """In the currency of the client's prices; 0 for what was taken from the cache."""
    cached: bool = False
    """Taken from the response cache, and not paid for again."""


class ChatModel(Protocol):
    """Answers a conversation."""

    def __call__(self, messages: Sequence[Message], /) -> Awaitable[Answer | str]:
        """Return the answer to the conversation so far."""


@runtime_checkable
class Sampling(Protocol):
    """A model that tells repeated answers to the same messages apart, as one with a cache must."""

    def sample(self, index: int) -> ChatModel:
        """Return the model whose answers are the `index`-th sample, from 0."""


@runtime_checkable
class Shaping(Protocol):
    """A model whose server can hold answers to a JSON schema."""

    def shaped(self, schema: Mapping[str, object]) -> ChatModel:
        """Return the model that answers with JSON of this schema."""


@runtime_checkable
class Named(Protocol):
    """A model that says what it is called."""

    @property
    def name(self) -> str:
        """What tells its answers from those of another model."""


def name_of(model: ChatModel) -> str:
    """Return what a model is called; its type where it does not say."""
    return model.name if isinstance(model, Named) else type(model).__qualname__


def sample_of(model: ChatModel, index: int) -> ChatModel:
    """Return the model to ask for the `index`-th of several answers to the same messages."""
    return model.sample(index) if isinstance(model, Sampling) else model


async def ask(model: ChatModel, messages: Sequence[Message]) -> Answer:
    """Ask a model of any kind; a plain text becomes an `Answer`.

    Raises:
        CallbackError: the model raised.
        DataError: it answered with something that is no text.
    """
    with boundary("the language model"):
        answer = await model(messages)
    if isinstance(answer, str):
        return Answer(answer)
    if not isinstance(answer, Answer):
        raise DataError(f"the language model answered with {type(answer).__name__}, not a text")
    return answer
