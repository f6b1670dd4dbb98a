from __future__ import annotations

import pytest

from orbiter.train.demo.requests import ToolRequest, load_requests
from orbiter.train.errors import StorageError


@pytest.fixture(scope="session")
def requests() -> list[ToolRequest]:
    try:
        return load_requests()
    except StorageError as error:
        pytest.skip(f"the leaderboard's wheel cannot be had: {error}")
