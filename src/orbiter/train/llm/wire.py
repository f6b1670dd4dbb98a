"""Send one request to an OpenAI-compatible endpoint and parse the response.

The `openai` package sends it, with its retries switched off: `client.py` decides on further
attempts. Endpoints differ in their responses, so parsing is lenient: content in parts, reasoning in
a separate field, chunks without a delta, errors in a body with status 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from orbiter.train.errors import ConfigError, require
from orbiter.train.llm.config import ClientConfig
from orbiter.train.llm.failure import FailureKind
from orbiter.train.llm.reasoning import split_reasoning
from orbiter.train.redact import MASK, mask_text, secrets_of_the_environment

_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of a 429 that does not go away by waiting."""
_RETRIED_STATUS = frozenset({408, 409, 425})
_MASKED_FROM = 4
"""In characters. Shorter keys are placeholders ("x", "no"); masking them would garble messages."""
_PLACEHOLDERS = re.compile(
    r"(sk-)?(no|none|null|nil|empty|dummy|fake|test(ing)?|local(host)?|ollama|lm.?studio|vllm|llama"
    r"|(your.|my.)?(api.?)?(key|token|secret)|(no|not)?.?(needed|required|used|key)|unused|change.?me"
    r"|placeholder|anything|whatever|model|openai|default|no.key.required|token-abc123|x+|\*+)",
    re.IGNORECASE,
)
"""Values that people set as a key for servers without keys; they are words, not secrets."""
SCHEMA_STATUS = frozenset({400, 404, 405, 406, 415, 422})
"""Status codes with which an endpoint may reject a JSON schema without saying so."""
_ABOUT_SCHEMA = re.compile(r"response_format|json_schema|schema|structured|grammar|guided", re.I)

Json = Any


class RequestFailed(Exception):  # noqa: N818 - one failed request; never leaves this package
    """A request without an answer."""

    def __init__(
        self,
        message: str,
        kind: FailureKind,
        *,
        retry_after: float | None = None,
        maybe_paid: bool = False,
        about_schema: bool = False,
        status: int | None = None,
    ) -> None:
        """Describe the failure; `maybe_paid` if the endpoint may charge for it anyway."""
        super().__init__(message)
        self.kind: FailureKind = kind
        self.retry_after = retry_after
        self.maybe_paid = maybe_paid
        self.about_schema = about_schema
        """Whether the message complains about the JSON schema of the request."""
        self.status = status
        """The HTTP status, if that is the failure."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The parts of a chat completion that are used here."""

    text: str
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def read_completion(raw: bytes) -> Completion:
    """Parse the body of a response.

    Raises:
        RequestFailed: it is not a chat completion, or contains no answer.
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(
            f"the response is not a chat completion ({error}): {raw[:120]!r}"
        ) from None
    choices = _field(body, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise _of_error_body(body) or _unreadable(
            f"the response holds no choices: {raw[:120].decode('utf-8', 'replace')}"
        )
    message = _field(choice, "message")
    # Old completion endpoints put the text into the choice itself.
    message = message if isinstance(message, dict) else {"content": choice.get("text")}
    content = _read_message(message)
    finish = choice.get("finish_reason")
    if content.text is None:
        raise _without_text(message, finish, content.reasoning)
    if not content.text and finish == "content_filter":
        raise _refused("the endpoint's content filter removed the answer")
    # Some models write their thoughts into the text, between tags.
    split = split_reasoning(content.text)
    usage = _field(body, "usage")
    return Completion(
        split.text,
        "\n\n".join(part for part in (content.reasoning, split.reasoning) if part),
        finish if isinstance(finish, str) else None,
        _count(_field(usage, "prompt_tokens")),
        _count(_field(usage, "completion_tokens")),
    )


@dataclass(slots=True)
class _Content:
    """The content of a message, or of a stream's deltas so far."""

    text: str | None = None
    """None: no text at all, which differs from an empty one."""
    reasoning: str = ""

    def add(self, message: Json) -> None:
        """Add a message or a delta."""
        self.add_content(_field(message, "content"))
        for name in ("reasoning_content", "reasoning", "thinking"):
            value = _field(message, name)
            if isinstance(value, str) and value:
                self.reasoning += value
                break  # some endpoints send the same reasoning under two names

    def add_content(self, content: Json) -> None:
        """Add content: a text, a part, or a list of parts."""
        if isinstance(content, str):
            self.text = (self.text or "") + content
        elif isinstance(content, list):
            for part in content:
                self.add_content(part)
        elif isinstance(content, dict):
            thought = content.get("thinking") or content.get("reasoning")
            # Providers disagree on the type's name, so anything that looks like a thought counts.
            if thought or "think" in str(content.get("type")) or content.get("type") == "reasoning":
                inner = _Content()
                inner.add_content(thought or content.get("text"))
                self.reasoning += inner.text or ""
                return
            text = content.get("text")
            # OpenAI's assistants nest the text in an object with a value.
            self.add_content(text.get("value") if isinstance(text, dict) else text)


def _read_message(message: Json) -> _Content:
    content = _Content()
    content.add(message)
    content.reasoning = content.reasoning.strip()
    return content


def _without_text(message: Mapping[str, Json], finish: Json, reasoning: str) -> RequestFailed:
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return _refused(f"the model refused: {refusal[:200]}")
    if finish == "content_filter":
        return _refused("the endpoint's content filter removed the answer")
    if reasoning and finish == "length":
        return _unreadable(
            "the response holds reasoning but no answer: it was cut off (finish_reason 'length'); "
            "raise max_tokens"
        )
    return _unreadable(f"the response holds no text (finish_reason {finish!r})")


def _of_error_body(body: Json) -> RequestFailed | None:
    """Return the error in a body with status 200, which some gateways send."""
    error = _field(body, "error")
    if not error:
        return None
    message = _field(error, "message") or error
    # Gateways pass on a provider's 429 inside a response with status 200.
    kind: FailureKind = "rate_limit" if str(_field(error, "code")) == "429" else "server"
    return RequestFailed(f"the response is an error: {str(message)[:200]}", kind, maybe_paid=True)


def _refused(message: str) -> RequestFailed:
    return RequestFailed(message, "refused", maybe_paid=True)


def _unreadable(message: str) -> RequestFailed:
    return RequestFailed(message, "answer", maybe_paid=True)


def _field(value: Json, name: str) -> Json:
    """Return a field of a JSON object or an `openai` model; None if it is missing."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _count(value: Json) -> int | None:
    """Return a token count; some endpoints send it as a float or a text."""
    # float also reads a count that is sent as text.
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        if number >= 0 and math.isfinite(number):
            return int(number)
    return None


class ConnectionPool:
    """An open connection pool to one endpoint, for one event loop."""

    def __init__(self, config: ClientConfig, api_key: str | None) -> None:
        """Open the pool; the key is passed to `openai` and stored nowhere else.

        Raises:
            ConfigError: the key is missing here and in OPENAI_API_KEY, or cannot be a key.
            MissingExtraError: the `openai` package is not installed.
        """
        self._openai = openai = require("openai", extra="llm")
        self._httpx = _http_library(openai)
        timeout = openai.Timeout(
            config.total_timeout, connect=config.connect_timeout, read=config.read_timeout
        )
        # Most local endpoints need no key, but the package insists on one.
        key = (api_key or "").strip() or (None if config.base_url is None else "none")
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(
                "the API key holds a space, a line break or a character outside ASCII, so it "
                "cannot be sent; copy it again"
            )
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=config.base_url,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=timeout),
            timeout=timeout,
        )
        self._mask = _mask_of(key or self._client.api_key)
        self._config = config

    async def send(
        self,
        messages: Sequence[Mapping[str, object]],
        extra: Mapping[str, object],
        *,
        alive: Callable[[], None],
    ) -> bytes:
        """Return the body of the response to one request.

        `alive` is called for each piece of a stream: the endpoint is working on the answer.

        Raises:
            RequestFailed: no response came, or it is incomplete.
        """
        async with self._translated():
            if self._config.stream:
                return await self._streamed(list(messages), dict(extra), alive)
            return await self._whole(list(messages), dict(extra))

    async def complete(self, token_ids: Sequence[int], extra: Mapping[str, object]) -> bytes:
        """Return the body of the response to a completion of these tokens.

        Raises:
            RequestFailed: no response came.
        """
        async with self._translated():
            response = await self._client.completions.with_raw_response.create(
                model=self._config.model, prompt=list(token_ids), extra_body=dict(extra)
            )
            content: bytes = response.content
            return content

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Limit the time of a request, and raise its errors as `RequestFailed`."""
        openai, httpx = self._openai, self._httpx
        try:
            async with asyncio.timeout(self._config.total_timeout):
                yield
        except (TimeoutError, openai.APITimeoutError, httpx.TimeoutException):
            raise RequestFailed("nothing arrived in time", "timeout", maybe_paid=True) from None
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except (openai.APIConnectionError, httpx.HTTPError, httpx.StreamError) as error:
            cause = type(error.__cause__ or error).__name__
            raise RequestFailed(
                f"the connection failed ({cause})", "connection", maybe_paid=cause != "ConnectError"
            ) from None
        except openai.APIError as error:
            message = self._without_key(error.message)
            raise RequestFailed(
                f"an error in the stream: {message}",
                "server",
                maybe_paid=True,
                about_schema=bool(_ABOUT_SCHEMA.search(message)),
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

    async def _streamed(
        self, messages: list[Any], extra: dict[str, object], alive: Callable[[], None]
    ) -> bytes:
        """Join the chunks into the body that an unstreamed answer would have."""
        content, finish, usage = _Content(), None, None
        try:
            stream = await self._client.chat.completions.create(
                model=self._config.model,
                messages=messages,
                stream=True,
                extra_body={"stream_options": {"include_usage": True}, **extra},
            )
            async with stream:
                async for piece in stream:
                    alive()
                    # Endpoints send the usage in an extra last chunk without choices.
                    usage = _field(piece, "usage") or usage
                    choices = _field(piece, "choices")
                    choice = choices[0] if isinstance(choices, list) and choices else None
                    content.add(_field(choice, "delta"))
                    if content.text is None:  # a last chunk may contain the whole message instead
                        content.add(_field(choice, "message"))
                    finish = _field(choice, "finish_reason") or finish
        # openai does not validate chunks
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise _unreadable(f"a piece of the stream is broken: {error}") from None
        # A stream without a finish reason was cut off, and half an answer must not be cached.
        if finish is None:
            raise RequestFailed("the stream broke off", "connection", maybe_paid=True)
        message = {"content": content.text, "reasoning_content": content.reasoning}
        counts = {n: _count(_field(usage, n)) for n in ("prompt_tokens", "completion_tokens")}
        choices = [{"message": message, "finish_reason": str(finish)}]
        return msgspec.json.encode({"choices": choices, "usage": counts})

    def _of_status(self, error: Any) -> RequestFailed:  # noqa: ANN401 - openai is loaded lazily
        status = int(error.status_code)
        message = f"HTTP {status}: {self._without_key(str(error.message))}"
        wait = _retry_after(error.response.headers)
        about_schema = bool(_ABOUT_SCHEMA.search(message))
        # A used-up quota is a 429 too, but waiting does not bring it back.
        if status == 429 and not _QUOTA & {str(error.code), str(error.type)}:
            return RequestFailed(message, "rate_limit", retry_after=wait)
        if status >= 500 or status in _RETRIED_STATUS:
            return RequestFailed(message, "server", retry_after=wait, about_schema=about_schema)
        return RequestFailed(message, "refused", about_schema=about_schema, status=status)

    def _without_key(self, message: str) -> str:
        """Mask the key in a server's message, which may repeat it."""
        clean = self._mask.sub(MASK, message) if self._mask else message
        return mask_text(clean, secrets_of_the_environment())[:300]


def _http_library(openai: Any) -> Any:  # noqa: ANN401 - modules, loaded lazily
    """Return the HTTP library of the `openai` package, for its errors: httpx or a successor."""
    bases = openai.DefaultAsyncHttpxClient.__mro__
    client = next(base for base in bases if base.__name__ == "AsyncClient")
    return require(client.__module__.partition(".")[0], extra="llm")


def _mask_of(key: str) -> re.Pattern[str] | None:
    """Return a pattern that finds the key; None for a placeholder, which is an ordinary word."""
    if len(key) < _MASKED_FROM or _PLACEHOLDERS.fullmatch(key):
        return None
    return re.compile(
        # A key of letters alone might be part of an ordinary word, so only whole words are
        # masked.
        rf"(?<![^\W_]){re.escape(key)}(?![^\W_])" if key.isalpha() else re.escape(key)
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from `retry-after-ms` or `retry-after` (a number or a date)."""
    # Milliseconds first, since they are more precise where both are sent.
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) / unit
            return None if math.isnan(seconds) else max(0.0, seconds)
    with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
        return _seconds_until(headers["retry-after"])
    return None


def _seconds_until(date: str) -> float:
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    when = parsedate_to_datetime(date)
    if when.tzinfo is None:  # "-0000" and a missing zone both mean UTC in HTTP
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
