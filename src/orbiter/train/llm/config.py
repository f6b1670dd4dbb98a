"""Settings, prices and usage counts of an endpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orbiter.train.checks import (
    Boolean,
    Number,
    OrNone,
    Table,
    Text,
    WholeNumber,
    check_fields,
    described,
    setting,
    shown,
)
from orbiter.train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Prices of tokens per million, in any currency."""

    input: float
    """Per million prompt tokens."""
    output: float
    """Per million completion tokens."""

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"price.{name} must be 0 or more, got {getattr(self, name)}")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of these token counts."""
        return (self.input * prompt_tokens + self.output * completion_tokens) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The endpoint of a `RemoteChatModel`, and its limits."""

    model: str = field(
        metadata=described("Name of the model.", Text("the model to ask"), path="model")
    )
    base_url: str | None = setting(
        None,
        "Address of the API, usually ending in /v1; none means the default of the openai package, "
        "and on the command line a model on this machine.",
        OrNone(Text("the address of an API")),
    )
    parameters: Mapping[str, object] = setting(
        dict,
        "Parameters of every request under the API's names: temperature, max_tokens, seed, ...",
        Table(),
        cli=False,
    )
    concurrency: int = setting(
        16,
        "Most requests at once; how fast they follow each other is learned from the endpoint.",
        WholeNumber(at_least=1),
    )
    attempts: int = setting(
        5,
        "Requests for one answer before it fails; a 429 does not count.",
        WholeNumber(at_least=1),
    )
    connect_timeout: float = setting(10.0, "Seconds to connect.", Number(above=0))
    read_timeout: float = setting(
        120.0,
        "Longest silence in seconds; without stream, an endpoint is silent until the whole answer "
        "is written.",
        Number(above=0),
    )
    total_timeout: float = setting(
        600.0, "Seconds of one request, from sending to its last byte.", Number(above=0)
    )
    give_up_seconds: float = setting(
        300.0,
        "Seconds without any answer of the endpoint after which waiting calls fail.",
        Number(above=0),
    )
    stream: bool = setting(
        False,
        "Receive answers in pieces, so that read_timeout can be short with slow models.",
        Boolean(),
    )
    price: Price | None = setting(
        None, "Price of the endpoint's tokens; none counts tokens only.", cli=False
    )
    budget: float | None = setting(
        None,
        "Most that may be spent in all, earlier processes with the same cache included; needs "
        "price, and max_tokens among the parameters.",
        OrNone(Number(above=0)),
        cli=False,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.price is not None and not isinstance(self.price, Price):
            raise ConfigError(f"price must be a Price or None, got {shown(self.price)}")
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
        if self.price is None or self.most_tokens is None:
            raise ConfigError(
                "budget needs price=Price(...) and a whole number as parameters['max_tokens'] (or "
                "'max_completion_tokens'): without them nobody knows what a request may cost"
            )

    @property
    def most_tokens(self) -> int | None:
        """Maximum tokens of an answer, or None if the parameters do not limit them."""
        for name in ("max_completion_tokens", "max_tokens"):
            value = self.parameters.get(name)
            if isinstance(value, int) and value > 0:
                return value
        return None


@dataclass(slots=True)
class Usage:
    """What a client has used in this process so far."""

    answers: int = 0
    """Paid answers."""
    cached: int = 0
    """Answers taken from the cache."""
    requests: int = 0
    """Requests sent, retries included."""
    rate_limited: int = 0
    """Requests answered with 429."""
    failed: int = 0
    """Requests that failed for another reason."""
    prompt_tokens: int = 0
    """Prompt tokens, as counted by the endpoint."""
    completion_tokens: int = 0
    """Completion tokens, as counted by the endpoint."""
    cost: float = 0.0
    """Cost of the answers."""
    unsure_cost: float = 0.0
    """Maximum cost of interrupted requests. It is unknown whether they are charged, so a budget
    counts them as spent."""
