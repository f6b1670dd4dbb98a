"""The heap asks for large pages without taking memory for it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest

from orbiter.train.engine.allocator import large_pages_on_request
from tests.children import run_child

CHILD = """
import ctypes, torch
from orbiter.train.engine.allocator import keep_freed_memory
from orbiter.train.engine.memory import _free_in_heap, _resident
from pathlib import Path

def kilobytes(name):
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

before = kilobytes("Rss")
keep_freed_memory()
print(kilobytes("Rss") - before)
block = torch.ones(64 << 18)  # 64 MiB
print(kilobytes("AnonHugePages"))
full = _free_in_heap()
del block
print((_free_in_heap() - full) >> 10)
"""


@pytest.mark.skipif(not large_pages_on_request(), reason="this system does not take requests")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_the_heap_gets_large_pages_and_costs_nothing_before_it_is_used() -> None:
    out = run_child(
        [sys.executable, "-W", "ignore", "-c", CHILD], timeout=120, env=dict(os.environ)
    )
    assert out.returncode == 0, out.stderr
    reserved, large, freed = map(int, out.stdout.split())
    assert reserved < 16 << 10  # KiB, of half of this machine's memory
    assert large > 32 << 10
    # What was freed counts as free, and addresses that were never used do not.
    assert 48 << 10 < freed < 80 << 10


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("always [madvise] never\n", True),
        ("[always] madvise never\n", False),
        ("always madvise [never]\n", False),
    ],
)
def test_only_the_setting_that_waits_for_requests_gets_one(
    tmp_path: Path, text: str, asks: bool
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text(text)
    strict = Path("/proc/sys/vm/overcommit_memory")
    can = sys.platform == "linux" and strict.exists() and strict.read_text().strip() != "2"
    assert large_pages_on_request(str(setting)) is (asks and can)
    assert not large_pages_on_request(str(tmp_path / "missing"))
