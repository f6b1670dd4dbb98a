"""The interface of a language model: messages in, an answer out.

Any async callable from messages to a text or an `Answer` is a model: a remote one, a local one, a
scripted one in a test. There is no streaming: every caller here needs the whole answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError, boundary
from orbiter.train.llm.reasoning import split_reasoning


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer with its tokens and its cost."""

    text: str
    prompt_tokens: int | None = None
    """Tokens of the prompt; None if the model did not report them."""
    completion_tokens: int | None = None
    """Tokens of the answer; None if the model did not report them."""
    cost: float = 0.0
    """In the currency of the client's prices; 0 for an answer from the cache."""
    cached: bool = False
    """Whether it came from the response cache, at no further cost."""
    reasoning: str = field(default="", compare=False)
    """The model's reasoning before the answer, if it was shown; never part of `text`."""
    finish_reason: str | None = field(default=None, compare=False)
    """Why the model stopped, in the endpoint's words: "length" means that `text` is cut off."""


class ChatModel(Protocol):
    """Answers a conversation."""

    def __call__(self, messages: Sequence[Message], /) -> Awaitable[Answer | str]:
        """Return the answer to the conversation so far."""


@runtime_checkable
class Sampling(Protocol):
    """A model that can give several different answers to the same messages, even with a cache."""

    def sample(self, index: int) -> ChatModel:
        """Return the model whose answers are the `index`-th sample, from 0."""


@runtime_checkable
class Shaping(Protocol):
    """A model whose server can constrain answers to a JSON schema."""

    def shaped(self, schema: Mapping[str, object]) -> ChatModel:
        """Return the model that answers with JSON of this schema."""


@runtime_checkable
class Named(Protocol):
    """A model that has a name."""

    @property
    def name(self) -> str:
        """Name that identifies the model in journals and messages."""


def name_of(model: ChatModel) -> str:
    """Return a model's name, or the name of its type if it has none."""
    return model.name if isinstance(model, Named) else type(model).__qualname__


def sample_of(model: ChatModel, index: int) -> ChatModel:
    """Return the model to ask for the `index`-th of several answers to the same messages."""
    return model.sample(index) if isinstance(model, Sampling) else model


async def ask(model: ChatModel, messages: Sequence[Message]) -> Answer:
    """Ask a model of any kind; return its answer with the reasoning split off.

    Raises:
        CallbackError: the model raised.
        DataError: it returned something other than text.
    """
    with boundary("the language model"):
        answer = await model(messages)
    if isinstance(answer, str):
        answer = Answer(answer)
    if not isinstance(answer, Answer) or not isinstance(answer.text, str):
        raise DataError(
            f"the language model returned {type(answer).__name__}; it must return a str or an "
            "Answer with a str as text"
        )
    split = split_reasoning(answer.text)
    if split.text == answer.text:
        return answer
    reasoning = "\n\n".join(part for part in (answer.reasoning, split.reasoning) if part)
    return replace(answer, text=split.text, reasoning=reasoning)


class NumberedAnswers(Protocol):
    """A model whose answers are numbered, so that each sample of one request is kept apart."""

    @property
    def name(self) -> str:
        """The name for messages."""
        ...

    async def answer(
        self, messages: Sequence[Message], *, index: int, schema: Mapping[str, object] | None
    ) -> Answer:
        """Answer, or return the kept answer of this index."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """The model with a fixed sample index and optionally a schema."""

    model: NumberedAnswers
    index: int
    schema: Mapping[str, object] | None

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.model.name

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        """Return the answer of this index."""
        return await self.model.answer(messages, index=self.index, schema=self.schema)

    def sample(self, index: int) -> ChatModel:
        """Return the model with another index."""
        return Sample(self.model, index, self.schema)

    def shaped(self, schema: Mapping[str, object]) -> ChatModel:
        """Return the model with a schema for its answers."""
        return Sample(self.model, self.index, schema)
