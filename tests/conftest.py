"""What every test stands on: repeatable Hypothesis runs and no way out to the network."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models are faster on one thread, and on a busy machine twenty times so.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The shapes in the signatures of the formulas are checked while the tests run, and only then.
install_import_hook("orbiter.train.rl", "beartype.beartype")

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails, and says where it wanted to go."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
        if host not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to connect to {address!r}")
        connect(self, address)  # type: ignore[arg-type] # an address is whatever the family takes

    monkeypatch.setattr(socket.socket, "connect", refuse)
