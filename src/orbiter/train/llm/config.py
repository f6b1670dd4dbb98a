"""How an endpoint is asked, what it charges, and what was used so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orbiter.train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What tokens cost, in any currency, for a million of them."""

    input: float
    """A million tokens read."""
    output: float
    """A million tokens written."""

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"price.{name} must be 0 or more, got {getattr(self, name)}")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what so many tokens cost."""
        return (self.input * prompt_tokens + self.output * completion_tokens) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Whom a `RemoteChatModel` asks, and how patiently."""

    model: str
    """The model's name, as the endpoint knows it."""
    base_url: str | None = None
    """Where the API stands, mostly ending in /v1; None: what the `openai` package takes."""
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    """What goes into every request under the API's own names: temperature, max_tokens, seed, ..."""
    concurrency: int = 16
    """Requests under way at once at most; how fast they follow is learned from the endpoint."""
    attempts: int = 5
    """Requests for one answer before it is given up; a 429 does not count as one."""
    connect_timeout: float = 10.0
    """Seconds for a connection."""
    read_timeout: float = 120.0
    """Longest silence in seconds; without `stream`, an answer is silence until it is written."""
    total_timeout: float = 600.0
    """Seconds for one request from sending to its last byte."""
    give_up_seconds: float = 300.0
    """Seconds for which the endpoint answers nobody until those who wait for it fail."""
    stream: bool = False
    """Have answers sent in pieces, so that `read_timeout` can be short with slow models."""
    price: Price | None = None
    """What the endpoint charges; None counts tokens only."""
    budget: float | None = None
    """What may be spent in all, earlier processes with the same cache included; needs `price`,
    and max_tokens among the `parameters`."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model must name the model to ask, got an empty text")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        for name in ("connect_timeout", "read_timeout", "total_timeout", "give_up_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0 seconds, got {getattr(self, name)!r}")
        self._check_base_url()
        self._check_parameters()
        self._check_budget()

    def _check_base_url(self) -> None:
        if self.base_url is None:
            return
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"base_url must begin with http:// or https://, got {self.base_url}")
        if parts.password or parts.username or parts.query:
            raise ConfigError(
                "base_url must hold no user name, password or query, since addresses end up in "
                "logs; pass the key as api_key="
            )

    def _check_parameters(self) -> None:
        taken = {"model", "messages", "stream", "response_format", "n"} & set(self.parameters)
        if taken:
            raise ConfigError(
                f"parameters must not set {', '.join(sorted(taken))}: the client does that"
            )

    def _check_budget(self) -> None:
        if self.budget is None:
            return
        if not 0 < self.budget < math.inf:
            raise ConfigError(f"budget must be above 0, got {self.budget}")
        if self.price is None or self.most_tokens is None:
            raise ConfigError(
                "budget needs price=Price(...) and a whole number as parameters['max_tokens'] (or "
                "'max_completion_tokens'): without them nobody knows what a request may cost"
            )

    @property
    def most_tokens(self) -> int | None:
        """Tokens that an answer may have, or None where the parameters do not say."""
        for name in ("max_completion_tokens", "max_tokens"):
            value = self.parameters.get(name)
            if isinstance(value, int) and value > 0:
                return value
        return None


@dataclass(slots=True)
class Usage:
    """What a client has done so far, in this process."""

    answers: int = 0
    """Answers paid for."""
    cached: int = 0
    """Answers taken from the cache."""
    requests: int = 0
    """Requests sent, repeated ones included."""
    rate_limited: int = 0
    """Requests answered with 429."""
    failed: int = 0
    """Requests that brought no answer for another reason."""
    prompt_tokens: int = 0
    """Tokens read, as the endpoint counts."""
    completion_tokens: int = 0
    """Tokens written, as the endpoint counts."""
    cost: float = 0.0
    """What the answers cost."""
    unsure_cost: float = 0.0
    """The most that requests may have cost which broke off: nobody says whether they are charged;
    a budget takes them as spent."""
