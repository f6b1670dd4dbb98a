"""One request to an OpenAI-compatible endpoint, through the `openai` package, and what came back.

The package's own retries are off. Left out: whether there is another try, which is `client.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orbiter.train.errors import require
from orbiter.train.llm.config import ClientConfig
from orbiter.train.llm.failure import FailureKind

_QUOTA = "insufficient_quota"
"""The code of a 429 that waiting does not cure."""
_RETRIED_STATUS = frozenset({408, 409, 425})


class RequestFailed(Exception):  # noqa: N818 - one request's end, which never leaves this package
    """A request without an answer."""

    def __init__(
        self,
        message: str,
        kind: FailureKind,
        *,
        retry_after: float | None = None,
        maybe_paid: bool = False,
    ) -> None:
        """Say what happened; `maybe_paid` where the endpoint may have worked all the same."""
        super().__init__(message)
        self.kind: FailureKind = kind
        self.retry_after = retry_after
        self.maybe_paid = maybe_paid


class ChoiceMessage(msgspec.Struct):
    """What the model wrote."""

    content: str | None = None


class Choice(msgspec.Struct):
    """One answer."""

    message: ChoiceMessage
    finish_reason: str | None = None


class Tokens(msgspec.Struct):
    """What an answer took."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(msgspec.Struct):
    """The parts of a chat completion that are read here."""

    choices: list[Choice]
    usage: Tokens | None = None

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].message.content or ""


_DECODER = msgspec.json.Decoder(Completion)


def read_completion(raw: bytes) -> Completion:
    """Read the body of a response.

    Raises:
        RequestFailed: it is no chat completion, or one without an answer.
    """
    try:
        completion = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestFailed(
            f"the response is no chat completion ({error}): {raw[:120]!r}",
            "answer",
            maybe_paid=True,
        ) from None
    if not completion.choices or completion.choices[0].message.content is None:
        reason = completion.choices[0].finish_reason if completion.choices else "no choices"
        raise RequestFailed(f"the response holds no text ({reason})", "answer", maybe_paid=True)
    return completion


class Wire:
    """An open connection pool to one endpoint."""

    def __init__(self, config: ClientConfig, api_key: str | None) -> None:
        """Open it; the key is handed to `openai` and kept nowhere else.

        Raises:
            ConfigError: there is no key, neither here nor in OPENAI_API_KEY.
            MissingExtraError: the `openai` package is not installed.
        """
        self._openai = openai = require("openai", extra="llm")
        timeout = openai.Timeout(
            config.total_timeout, connect=config.connect_timeout, read=config.read_timeout
        )
        # An own endpoint mostly asks for no key, but the package does.
        key = api_key or (None if config.base_url is None else "none")
        self._client = openai.AsyncOpenAI(
            api_key=key, base_url=config.base_url, max_retries=0, timeout=timeout
        )
        self._key = api_key or self._client.api_key
        self._config = config

    async def send(
        self, messages: Sequence[Mapping[str, object]], extra: Mapping[str, object]
    ) -> bytes:
        """Return the body of the response to one request.

        Raises:
            RequestFailed: there was none, or not to the end.
        """
        openai = self._openai
        try:
            async with asyncio.timeout(self._config.total_timeout):
                return await (self._streamed if self._config.stream else self._whole)(
                    list(messages), dict(extra)
                )
        except (TimeoutError, openai.APITimeoutError):
            raise RequestFailed("nothing came in time", "timeout", maybe_paid=True) from None
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            raise RequestFailed(
                f"the connection failed ({cause})", "connection", maybe_paid=cause != "ConnectError"
            ) from None
        except openai.APIError as error:
            message = self._without_key(error.message)
            raise RequestFailed(
                f"an error in the stream: {message}", "server", maybe_paid=True
            ) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _whole(self, messages: list[Any], extra: dict[str, object]) -> bytes:
        response = await self._client.chat.completions.with_raw_response.create(
            model=self._config.model, messages=messages, extra_body=extra or None
        )
        content: bytes = response.content
        return content

    async def _streamed(self, messages: list[Any], extra: dict[str, object]) -> bytes:
        """Join the pieces into the body that an answer in one piece would have had."""
        texts: list[str] = []
        finish, usage = None, None
        try:
            stream = await self._client.chat.completions.create(
                model=self._config.model,
                messages=messages,
                stream=True,
                extra_body={"stream_options": {"include_usage": True}, **extra},
            )
            async with stream:
                async for piece in stream:
                    usage = piece.usage or usage
                    for choice in piece.choices[:1]:
                        texts.append(choice.delta.content or "")
                        finish = choice.finish_reason or finish
        except ValueError as error:  # a piece that is no JSON; openai lets json's error through
            raise RequestFailed(
                f"a piece of the stream is broken: {error}", "answer", maybe_paid=True
            ) from None
        if finish is None:
            raise RequestFailed("the stream broke off", "connection", maybe_paid=True)
        message = ChoiceMessage("".join(texts))
        tokens = usage and Tokens(usage.prompt_tokens, usage.completion_tokens)
        return msgspec.json.encode(Completion([Choice(message, finish)], tokens))

    def _of_status(self, error: Any) -> RequestFailed:  # noqa: ANN401 - openai is loaded lazily
        status = int(error.status_code)
        message = f"HTTP {status}: {self._without_key(error.message)}"
        wait = _retry_after(error.response.headers)
        if status == 429 and error.code != _QUOTA:
            return RequestFailed(message, "rate_limit", retry_after=wait)
        if status >= 500 or status in _RETRIED_STATUS:
            return RequestFailed(message, "server", retry_after=wait)
        return RequestFailed(message, "refused")

    def _without_key(self, message: str) -> str:
        """Take the key out of what a server says: some repeat it."""
        clean = message.replace(self._key, "***") if self._key else message
        return clean[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from `retry-after-ms` or `retry-after` (a number or a date)."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) / unit)
    with contextlib.suppress(KeyError, ValueError):
        return _seconds_until(headers["retry-after"])
    return None


def _seconds_until(date: str) -> float:
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    when = parsedate_to_datetime(date)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
