"""Plants each bug of the `mutants.py` of a package, and expects its tests to catch every one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.children import run_child

TESTS = Path(__file__).parent


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="plants each bug in a forked process")
@pytest.mark.parametrize("package", sorted(path.parent.name for path in TESTS.glob("*/mutants.py")))
def test_every_planted_bug_is_caught(package: str) -> None:
    words = [sys.executable, "-m", f"tests.{package}.mutants"]
    done = run_child(words, cwd=TESTS.parent, timeout=1700)
    assert done.returncode == 0, done.stdout
