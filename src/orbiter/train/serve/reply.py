"""Defines a request to the model and its answers, which grow token by token.

`batching.py` draws the tokens; `stream.py` and the dialects send them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from orbiter.train.serve.text import AnswerText


class ChatPolicy(Protocol):
    """What is read of a model to write its prompts and to read its answers; `Policy` has it."""

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - Hugging Face's
        """The tokenizer, with its chat template."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def context_length(self) -> int:
        """Tokens of a prompt and its answer at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSettings:
    """How the answers to a prompt are drawn."""

    n: int = 1
    """Answers to the prompt."""
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    """Answer g draws what answer g of `sample([prompt], seed=seed)` draws."""
    top_logprobs: int = 0
    """How many of the likeliest tokens are reported at each position."""
    stops: Sequence[str] = ()
    live: bool = False
    """Whether the text is needed while it grows."""
    limit: str | None = None
    """Which limit of the episode made `max_new_tokens` smaller than asked for, if any."""


class DrawnToken(NamedTuple):
    """One token of an answer."""

    token_id: int
    logprob: float
    """In nats, of the full softmax at the request's temperature; at temperature 0 as at 1."""
    top: list[tuple[int, float]]
    """The likeliest tokens at this position, with their log probabilities."""


@dataclass(slots=True)
class GrowingAnswer:
    """One answer, as far as it has been drawn."""

    index: int
    text: AnswerText
    tokens: list[DrawnToken] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    """"stop": the model or a stop text ended it; "length": it was cut off; None: not ended yet."""


class GrowingReply:
    """The growing answers to one request; wait for them with `changed` or `finished`."""

    def __init__(
        self, prompt_ids: Sequence[int], sampling: DrawSettings, policy: ChatPolicy
    ) -> None:
        """Create empty answers."""
        self.prompt_ids, self.sampling = list(prompt_ids), sampling
        self.error: Exception | None = None
        self.left = False
        """Whether no client waits for it any more."""
        self._policy, self._news, self._end = policy, asyncio.Event(), asyncio.Event()
        self.choices = [
            GrowingAnswer(index, AnswerText(self._decode, sampling.stops))
            for index in range(sampling.n)
        ]

    @property
    def done(self) -> bool:
        """Whether every answer is complete."""
        return all(choice.finish_reason for choice in self.choices)

    async def changed(self) -> None:
        """Wait until something has been added since the last call.

        Raises:
            Exception: the model could not answer.
        """
        # An error that came before the call must not be waited for.
        if self.error is None:
            await self._news.wait()
            # Cleared after the wait: what is added from now on sets it again.
            self._news.clear()
        if self.error is not None:
            raise self.error

    async def finished(self) -> None:
        """Wait for the end.

        Raises:
            Exception: as for `changed`.
        """
        # Not by `changed`, which wakes its caller at every token.
        await self._end.wait()
        if self.error is not None and not self.done:
            raise self.error

    def leave(self) -> None:
        """Abandon the reply: its rows are dropped before the next step."""
        self.left = True

    def take(self, choice: GrowingAnswer, drawn: DrawnToken) -> None:
        """Add a token to an answer, and end the answer if the token ends it."""
        sampling = self.sampling
        choice.tokens.append(drawn)
        ended = drawn.token_id in self._policy.stop_token_ids
        # Stop texts can only be found in text, so it is decoded as it grows.
        live = sampling.live or bool(sampling.stops)
        # The token that ends the answer is not part of its text, even if it is not special.
        cut = not ended and self._spell(choice, drawn.token_id, live=live)
        full = len(choice.tokens) == sampling.max_new_tokens
        # Bytes of an incomplete character are written at the end, where a stop text may still
        # match.
        if not cut and (ended or full):
            cut = choice.text.finish()
        if ended or cut or full:
            choice.finish_reason = "stop" if ended or cut else "length"
        self._report()

    def end(self, choice: GrowingAnswer) -> None:
        """End an answer that gets no more tokens, for a reason that its tokens do not show."""
        if choice.finish_reason is None:
            full = len(choice.tokens) >= self.sampling.max_new_tokens
            choice.text.finish()
            choice.finish_reason = "length" if full else "stop"
        self._report()

    def fail(self, error: Exception) -> None:
        """End the reply with an error."""
        self.error = error
        self._report()

    def _report(self) -> None:
        """Wake the tasks that wait for a change."""
        self._news.set()
        if self.done or self.error is not None:
            self._end.set()

    def _spell(self, choice: GrowingAnswer, token_id: int, *, live: bool) -> bool:
        if live:
            return choice.text.push(token_id)
        choice.text.note(token_id)
        return False

    def _decode(self, token_ids: Sequence[int]) -> str:
        # Special tokens mark structure and are never shown to the client.
        text: str = self._policy.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text
