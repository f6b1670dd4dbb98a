"""Turn a conversation into a queued reply: render it, tokenise it, check its length, submit it.

Rendering and tokenising run on a separate thread, off the event loop, because a long prompt
would keep every other client waiting; a text that cannot fit the model's context is refused before
that.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from orbiter.train.chat.message import Message
from orbiter.train.engine.encoding import encode
from orbiter.train.engine.prompt import chat_text
from orbiter.train.errors import DataError
from orbiter.train.serve.asked import ChatRequest, Refusal
from orbiter.train.serve.batching import StaleWeightsError
from orbiter.train.serve.reply import ChatPolicy, DrawSettings, GrowingReply

P = ParamSpec("P")
R = TypeVar("R")


class RequestQueue(Protocol):
    """Draws the answers to prompts; `Batcher` does it here."""

    @property
    def full(self) -> bool:
        """Whether the next request should be refused."""

    def submit(self, prompt_ids: Sequence[int], sampling: DrawSettings) -> GrowingReply:
        """Queue a request."""

    def announced(self) -> AbstractContextManager[None]:
        """Announce a request for as long as its prompt is being written."""


Q = TypeVar("Q", bound=RequestQueue)


class Answering(Generic[Q]):
    """A model that answers conversations; used by a server and by a policy in training."""

    def __init__(self, policy: ChatPolicy, batcher: Q) -> None:
        """Answer with this model through its decode loop."""
        self.policy, self.batcher = policy, batcher
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="orbiter-prompt")

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def beside(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run work on prompts outside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, functools.partial(fn, *args, **kwargs))

    async def prompt(self, request: ChatRequest) -> list[int]:
        """Return the conversation as the model's prompt, exactly as in training.

        Raises:
            Refusal: 400: it is too long, or the chat template rejects it.
        """
        self.check_length(request)
        return await self.beside(self.render, request.chat, request.offered)

    def render(self, messages: Sequence[Message], tools: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to where the answer begins."""
        return encode(self.policy.tokenizer, self.text(messages, tools, open_turn=True))

    def text(
        self, messages: Sequence[Message], tools: Sequence[Message], *, open_turn: bool
    ) -> str:
        """Return a conversation as the chat template writes it.

        Raises:
            Refusal: 400: there is no template, or it rejects this conversation.
        """
        tokenizer = self.policy.tokenizer
        if tokenizer.chat_template is None:
            raise Refusal(
                400,
                "this model's tokenizer has no chat template, so it cannot read a conversation: "
                "set `chat_template` in its tokenizer_config.json",
                param="messages",
            )
        try:
            return chat_text(tokenizer, messages, tools or None, open_turn=open_turn)
        except DataError as error:
            raise Refusal(400, str(error), param="messages") from error
        except Exception as error:
            problem = f"the chat template rejects this conversation: {error!r:.200}"
            raise Refusal(400, problem, param="messages") from error

    def check_length(self, request: ChatRequest) -> None:
        """Refuse a conversation whose text alone has more tokens than the context holds."""
        context = self.policy.context_length
        texts = sum(map(_bytes_in, request.messages)) + sum(map(_bytes_in, request.offered))
        least = texts // _longest_token(self.policy.tokenizer)
        if least > context:
            raise too_long(context, f"at least {least}", request.longest or 1)

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: DrawSettings,
    ) -> GrowingReply:
        """Queue a request.

        Raises:
            Refusal: 429: too many requests are waiting.
        """
        if self.batcher.full:
            raise Refusal(429, "too many requests are waiting; try again in a second")
        return self.batcher.submit(prompt_ids, sampling)


def too_long(context: int, prompt_tokens: object, answer: int) -> Refusal:
    """Refuse a conversation that does not fit the model's context."""
    return Refusal(
        400,
        f"the model's context holds {context} tokens; the conversation has {prompt_tokens} "
        f"and the answer may have {answer}: shorten one of them",
        param="messages",
        code="context_length_exceeded",
    )


def as_refusal(error: Exception) -> Refusal:
    """Return the error response for an exception that kept the model from answering."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, StaleWeightsError):
        return Refusal(503, str(error), code="stale_weights")
    return Refusal(500, f"{type(error).__name__}: {error}")


def _bytes_in(value: object) -> int:
    """Count the bytes of all texts in a value."""
    total, waiting = 0, [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            total += len(inner.encode("utf-8", "surrogatepass"))
        elif isinstance(inner, dict):
            waiting.extend(inner.values())
        elif isinstance(inner, list):
            waiting.extend(inner)
    return total


@functools.lru_cache(maxsize=4)
def _longest_token(tokenizer: Any) -> int:  # noqa: ANN401 - Hugging Face's
    """Return the bytes of the longest token, as an upper bound."""
    return max(len(token.encode()) for token in tokenizer.get_vocab())
