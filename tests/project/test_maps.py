"""The maps for contributors name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/orbiter/train"
PATH = re.compile(r"`([\w.]+(?:/[\w.]+)*/?)`")
"""A file or folder in backticks; whole commands and dotted names do not match."""


def named(page: str) -> list[str]:
    """Return the files and folders that a page names, those in its tree of folders included."""
    text = (ROOT / page).read_text("utf-8")
    entries = re.findall(r"^ +([\w]+(?:/|\.py))(?= )", text, re.MULTILINE)
    paths = [p for p in PATH.findall(text) if "/" in p or p.endswith((".py", ".md", ".toml"))]
    return sorted({*entries, *paths})


def exists(path: str) -> bool:
    """Whether a path exists below the root or the source, or is a file name somewhere in it."""
    return (
        (ROOT / path).exists()
        or (SOURCE / path).exists()
        or any(SOURCE.rglob(path.rstrip("/")))
        or any((ROOT / "tests").glob(path.rstrip("/")))
    )


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/engine.md", "docs/glossary.md"]
)
def test_every_file_that_a_map_names_exists(page: str) -> None:
    paths = named(page)
    assert [path for path in paths if not exists(path)] == []
    assert paths or page == "docs/glossary.md"


def test_a_missing_file_is_noticed() -> None:
    assert not exists("engine/no_such_file.py")
    assert exists("engine/arithmetic.py")
    assert exists("arithmetic.py")
