"""Compiled code that an earlier version of the package left on disk does no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import run_child

MODULE = """
from typing import NamedTuple
from orbiter.train.synthesis.similarity.kernels import compiled

class {name}(NamedTuple):
    number: int

@compiled
def double(held):
    return 2 * held.number

def main():
    print(double({name}(21)), sum(double.stats.cache_hits.values()))
"""


def run(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    source, text = folder / "loops.py", MODULE.format(name=name)
    if not source.exists() or source.read_text() != text:  # its time is part of the cache's key
        source.write_text(text)
    kept = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "kept"), "PYTHONPATH": str(folder)}
    return run_child([sys.executable, "-c", "import loops; loops.main()"], env=kept)


@pytest.mark.slow
def test_a_class_that_an_upgrade_renamed_does_not_end_every_call(tmp_path: Path) -> None:
    assert run(tmp_path, "Before").stdout.split() == ["42", "0"]
    assert run(tmp_path, "Before").stdout.split() == ["42", "1"], "it is kept"
    after = run(tmp_path, "Renamed")
    assert after.returncode == 0, after.stderr
    assert after.stdout.split() == ["42", "0"]
    again = run(tmp_path, "Renamed")
    assert again.stdout.split() == ["42", "1"], again.stderr


@pytest.mark.slow
def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    assert run(tmp_path, "Before").stdout.split() == ["42", "0"]
    (index,) = (tmp_path / "kept").rglob("*.nbi")
    whole = index.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 40):
        index.write_bytes(damaged)
        result = run(tmp_path, "Before")
        assert result.stdout.split() == ["42", "0"], result.stderr
