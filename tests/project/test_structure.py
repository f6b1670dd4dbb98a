"""The limits of CONTRIBUTING: no import cycles, and nothing too long or too crowded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project.structure import Tree

SOURCE = Path(__file__).parents[2] / "src/orbiter/train"
FUNCTION, FILE, FOLDER = 60, 450, 25
"""Most lines of a function, most lines of a file, most files of a folder."""


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree.read(SOURCE)


def test_no_modules_import_each_other_not_even_late_or_for_types(tree: Tree) -> None:
    assert tree.cycles() == []


def test_no_function_is_too_long(tree: Tree) -> None:
    assert tree.long_functions(FUNCTION) == []


def test_no_file_is_too_long(tree: Tree) -> None:
    assert {name: n for name, n in tree.lengths().items() if n > FILE} == {}


def test_no_folder_is_too_full(tree: Tree) -> None:
    assert {name: n for name, n in tree.folder_sizes().items() if n > FOLDER} == {}


def test_a_cycle_hidden_by_a_late_import_or_type_checking_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from orbiter.train import b\n")
    (tmp_path / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from orbiter.train.a import f\n"
    )
    (tmp_path / "c.py").write_text("import orbiter.train.a\n")
    assert Tree.read(tmp_path).cycles() == [["orbiter.train.a", "orbiter.train.b"]]


def test_a_long_function_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n" + "    1\n" * FUNCTION)
    assert [f.lines for f in Tree.read(tmp_path).long_functions(FUNCTION)] == [FUNCTION + 1]
