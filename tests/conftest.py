"""What every test stands on: repeatable Hypothesis runs and no way out to the network."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """Undo what a test, or an example that it runs, does to the environment variables."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"})


@pytest.fixture(autouse=True)
def no_handler_stays() -> Iterator[None]:
    """Remove log handlers that write to a stream of the test, such as the command line's."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(autouse=True)
def auto_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """dtype="auto" computes in float32, so that no result depends on the machine's speed."""
    from orbiter.train.engine import arithmetic

    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: 1.0)


@pytest.fixture(params=["this processor", "no packed bfloat16", "no packed weights"])
def each_processor(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Run a test on this processor, and as if oneDNN could not pack bfloat16, or anything.

    The operators fail as they do on a processor without AVX-512. Small weights are packed too.
    """
    import torch

    from orbiter.train.engine import arithmetic

    pack = torch.ops.mkldnn._reorder_linear_weight

    def refuse(weight: torch.Tensor, rows: int) -> Any:  # noqa: ANN401 - torch's own operator
        if request.param == "no packed weights" or weight.dtype == torch.bfloat16:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support ...")
        return pack(weight, rows)

    arithmetic.packing_works.cache_clear()
    monkeypatch.setattr(arithmetic, "PREPACK_FROM", 1)
    if request.param != "this processor":
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    yield request.param
    arithmetic.packing_works.cache_clear()
