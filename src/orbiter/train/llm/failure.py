"""What can go wrong between us and an endpoint, by name."""

from __future__ import annotations

from typing import Literal

from orbiter.train.errors import CallbackError, StateError

FailureKind = Literal["rate_limit", "timeout", "connection", "server", "answer", "refused"]
"""429 without end; nothing came in time; no connection, or one that broke off; a 5xx; an answer
that is none; a request that the endpoint will never take (4xx)."""


class ChatError(CallbackError):
    """An endpoint gave no answer, after everything that was worth trying was tried."""

    def __init__(self, message: str, *, kind: FailureKind) -> None:
        """Say what happened; `kind` is the last thing that went wrong."""
        super().__init__(message)
        self.kind: FailureKind = kind


class BudgetError(StateError):
    """The next request could pass the budget, so it was not sent."""
