"""The server settings that apply to requests, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from orbiter.train.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The server settings that apply to requests; `PolicyServer` explains each of them."""

    name: str
    token: str | None
    max_rows: int
    max_waiting: int
    max_tokens: int
    return_token_ids: bool
    seed: int

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        for field in ("max_rows", "max_waiting", "max_tokens"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.token is not None and not (
            self.token and self.token.isascii() and self.token.isprintable()
        ):
            raise ConfigError("token must be printable ASCII, and not empty")
