from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.children import run_child
from tests.mutation import unplantable
from tests.preference.mutants import BUGS


def test_every_bug_can_be_planted_in_the_source_of_today() -> None:
    assert BUGS
    assert unplantable(BUGS, package="preference") == []


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="plants each bug in a forked process")
def test_every_planted_bug_is_caught() -> None:
    root = Path(__file__).parents[2]
    done = run_child([sys.executable, "-m", "tests.preference.mutants"], cwd=root, timeout=1700)
    assert done.returncode == 0, done.stdout
