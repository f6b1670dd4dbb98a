"""openai's client of the last generation, which stands on another transport than today's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.storage import atomic_write
from tests.children import run_child

VERSION = "2.54.0"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Return where the older client is installed; what it needs stands beside today's already."""
    folder = ROOT / "build" / f"openai-{VERSION}"
    whole = folder / ".ok"
    if not whole.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        pip += ["--no-deps", "--upgrade", "--target", str(folder), f"openai=={VERSION}"]
        run_child(pip, check=True)
        with atomic_write(whole):
            pass
    return folder


@pytest.mark.slow
def test_every_call_of_an_openai_2_client_is_captured(folder: Path) -> None:
    done = run_child(
        [sys.executable, "-m", "tests.capture.openai2_agent"],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        check=True,
    )
    told: Any = json.loads(done.stdout)
    items = told["items"]

    assert (told["version"], told["transport"]) == (VERSION, "httpx")
    assert told["failures"] == 1
    assert len(items) + 1 == told["requests"] == 11
    assert items[8]["metadata"]["failed_attempts"][0]["status"] == 500
    whole, streamed, calling, calling_streamed = items[:4]
    assert whole["action"] == streamed["action"] == "The answer is 5."
    assert calling["action"] == calling_streamed["action"]
    assert calling["action"].count("<tool_call>") == 2
    assert [item["metadata"]["api"] for item in items[4:6]] == ["responses"] * 2
    assert [item["action"] for item in items[4:9]] == ["The answer is 5."] * 5
    assert told["broken"] in {"httpx", "openai"}
    assert items[9]["metadata"]["error"]
    assert "sk-test" not in done.stdout
