"""Plants each bug of the `mutants.py` of a package, and expects its tests to catch every one."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.children import run_child
from tests.mutation import unplantable

TESTS = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in TESTS.glob("*/mutants.py"))


def test_three_packages_plant_bugs() -> None:
    assert PACKAGES == ["preference", "rl", "verl"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_bug_can_be_planted_in_the_source_of_today(package: str) -> None:
    mutants = import_module(f"tests.{package}.mutants")
    assert mutants.BUGS
    assert unplantable(mutants.BUGS, package=mutants.PACKAGE) == []


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="plants each bug in a forked process")
@pytest.mark.parametrize("package", PACKAGES)
def test_every_planted_bug_is_caught(package: str) -> None:
    words = [sys.executable, "-m", f"tests.{package}.mutants"]
    done = run_child(words, cwd=TESTS.parent, timeout=1700)
    assert done.returncode == 0, done.stdout
