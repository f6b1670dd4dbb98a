"""Log probabilities of given tokens under a model behind an OpenAI-compatible endpoint.

Two forms are understood: vLLM's `prompt_logprobs`, and `echo` with `logprobs` of the completions
API. The first request finds out which of them the endpoint has.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orbiter.train.errors import ConfigError
from orbiter.train.llm.config import ClientConfig
from orbiter.train.llm.failure import ChatError
from orbiter.train.llm.gate import Gate
from orbiter.train.llm.wire import ConnectionPool, RequestFailed

FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 20.0
"""Seconds: upper limit of the random pause before the second attempt, doubled for each further one,
and the largest such limit."""

Json = Any


class KnownToken(NamedTuple):
    """A token of a prompt, as the endpoint knows it."""

    logprob: float
    """In nats, given the tokens before it."""
    text: str | None
    """Its text, if the endpoint says."""


class _Form(NamedTuple):
    """A way to ask for the log probabilities of a prompt."""

    name: str
    extra: Mapping[str, object]
    read: Callable[[Json, Sequence[int]], list[KnownToken] | None]
    """Returns the tokens after the first one; None if the response does not have them."""


class PromptScorer:
    """Asks an endpoint for the log probability of each token of a sequence.

    Any number of tasks of one event loop may use it at once.
    """

    def __init__(self, config: ClientConfig, *, api_key: str | None = None) -> None:
        """Check the settings; the first call connects.

        Raises:
            ConfigError: the API key cannot be sent.
            MissingExtraError: the `openai` package is not installed.
        """
        self.config = config
        self._pool = ConnectionPool(config, api_key)
        self._gate = Gate(concurrency=config.concurrency, give_up_seconds=config.give_up_seconds)
        self._form: _Form | None = None
        self._jitter = random.Random()  # affects only retry times, never the data

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Return log p(token | tokens before it) of every token but the first, in nats.

        Raises:
            ChatError: no answer came; `kind` is the reason.
            ConfigError: the endpoint does not give log probabilities of a prompt.
        """
        return [token.logprob for token in await self.known(token_ids)]

    async def known(self, token_ids: Sequence[int]) -> list[KnownToken]:
        """Return what the endpoint knows of every token but the first; raises as `logprobs`."""
        if len(token_ids) < 2:
            return []
        if self._form is None:
            self._form = await self._find(token_ids)
        body = await self._ask(token_ids, self._form.extra)
        tokens = self._form.read(body, token_ids)
        if tokens is None:
            raise ChatError(
                f"{self.config.model}: the response no longer holds log probabilities of the "
                f"prompt ({self._form.name})",
                kind="answer",
            )
        return tokens

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def _find(self, token_ids: Sequence[int]) -> _Form:
        """Return the first form that the endpoint answers."""
        reasons: list[str] = []
        for form in FORMS:
            try:
                body = await self._ask(token_ids, form.extra)
            except ChatError as error:
                # Only a refused request may be one whose parameters are unknown there.
                if error.kind != "refused":
                    raise
                reasons.append(f"{form.name}: {error}")
                continue
            if form.read(body, token_ids) is not None:
                return form
            reasons.append(f"{form.name}: the response holds none")
        raise ConfigError(
            f"{self.config.model} at {self.config.base_url} does not give log probabilities of a "
            f"prompt's tokens ({'; '.join(reasons)}); use a server that does, such as vLLM"
        )

    async def _ask(self, token_ids: Sequence[int], extra: Mapping[str, object]) -> Json:
        """Return the body of the response; retry until there is one or it is pointless."""
        waiting_since, failures = time.monotonic(), 0
        while True:
            try:
                async with self._gate.turn(waiting_since) as sent_at:
                    return await self._attempt(token_ids, extra, sent_at)
            except RequestFailed as failure:
                if failure.kind == "rate_limit":
                    continue  # the gate waits as long as the endpoint asks
                failures += 1
                if failure.kind == "refused" or failures >= self.config.attempts:
                    raise ChatError(f"{self.config.model}: {failure}", kind=failure.kind) from None
                backoff = min(FIRST_BACKOFF * 2**failures, LONGEST_BACKOFF)
                wait = max(failure.retry_after or 0.0, self._jitter.uniform(0.0, backoff))
                await asyncio.sleep(min(wait, max(0.0, self._gate.patience(waiting_since))))

    async def _attempt(
        self, token_ids: Sequence[int], extra: Mapping[str, object], sent_at: float
    ) -> Json:
        try:
            raw = await self._pool.complete(token_ids, extra)
        except RequestFailed as failure:
            if failure.kind == "rate_limit":
                self._gate.rate_limited(sent_at, failure.retry_after)
            elif failure.kind == "refused":
                self._gate.answered()
            else:
                self._gate.failed(failure.kind)
            raise
        self._gate.answered()
        try:
            return msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"the response is not JSON ({error}): {raw[:120]!r}"
            raise RequestFailed(message, "answer") from None


def _first_choice(body: Json) -> Mapping[str, Json]:
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _from_prompt_logprobs(body: Json, token_ids: Sequence[int]) -> list[KnownToken] | None:
    """Read vLLM's form: for each token a table from token id to its log probability.

    {"choices": [{"prompt_logprobs": [null, {"17": {"logprob": -0.3, "decoded_token": " a"}}]}]}
    """
    listed = _first_choice(body).get("prompt_logprobs")
    if not isinstance(listed, list) or len(listed) != len(token_ids):
        return None
    tokens = [
        _known(entry.get(str(token_id)) if isinstance(entry, dict) else None, "decoded_token")
        for entry, token_id in zip(listed[1:], token_ids[1:], strict=True)
    ]
    return _complete(tokens)


def _from_echo(body: Json, token_ids: Sequence[int]) -> list[KnownToken] | None:
    """Read the completions API's form, in which the prompt's tokens precede the sampled one.

    {"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [null, -0.3]}}]}
    """
    logprobs = _first_choice(body).get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    numbers, texts = logprobs.get("token_logprobs"), logprobs.get("tokens")
    # A server that ignores echo lists only the token that it sampled.
    if not isinstance(numbers, list) or len(numbers) < len(token_ids):
        return None
    if not isinstance(texts, list) or len(texts) != len(numbers):
        texts = [None] * len(numbers)
    pairs = list(zip(numbers, texts, strict=True))[1 : len(token_ids)]
    return _complete([_known({"logprob": n, "text": t}, "text") for n, t in pairs])


def _known(entry: Json, text: str) -> KnownToken | None:
    if not isinstance(entry, dict):
        return None
    logprob, token = entry.get("logprob"), entry.get(text)
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    # Rounding may leave a certain token a little above 0.
    if not math.isfinite(logprob) or logprob > 1e-3:
        return None
    return KnownToken(float(logprob), token if isinstance(token, str) else None)


def _complete(tokens: Sequence[KnownToken | None]) -> list[KnownToken] | None:
    known = [token for token in tokens if token is not None]
    return known if len(known) == len(tokens) else None


FORMS = (
    _Form(
        "prompt_logprobs", {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1},
        _from_prompt_logprobs,
    ),
    _Form(
        "echo", {"max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 1}, _from_echo
    ),
)  # fmt: skip
"""The ways to ask, in the order in which they are tried."""
