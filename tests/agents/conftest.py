"""A tiny policy that has read nothing, open to agents."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.serve.live import LivePolicy


@pytest.fixture(scope="session")
def policy() -> Policy:
    loaded = load_model("tiny", device="cpu")
    return make_policy(loaded.model, loaded.tokenizer, device="cpu", dtype="float32")


@pytest.fixture
async def live(policy: Policy) -> AsyncIterator[LivePolicy]:
    async with LivePolicy(policy, max_new_tokens=6) as opened:
        yield opened
