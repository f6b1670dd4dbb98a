"""Exceptions for requests to an endpoint, and the kinds of failure."""

from __future__ import annotations

from typing import Literal

from orbiter.train.errors import CallbackError, StateError

FailureKind = Literal["rate_limit", "timeout", "connection", "server", "answer", "refused"]
"""Endless 429; nothing arrived in time; no connection or an interrupted one; a 5xx; an unusable
answer; a request that the endpoint will never accept (4xx)."""


class ChatError(CallbackError):
    """An endpoint gave no answer, after every sensible retry."""

    def __init__(self, message: str, *, kind: FailureKind) -> None:
        """Describe the failure; `kind` is the kind of the last failed attempt."""
        super().__init__(message)
        self.kind: FailureKind = kind


class BudgetError(StateError):
    """The next request could exceed the budget, so it was not sent."""
