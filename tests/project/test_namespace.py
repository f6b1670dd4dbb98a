"""`orbiter` is an implicit namespace, so that orbiter-core may live beside this package."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import run_child

SOURCE = Path(__file__).parents[2] / "src"
EXTENDING = "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"


def imports(code: str, *folders: Path) -> "subprocess.CompletedProcess[str]":
    # the editable install's own entry is taken out, so that only `folders` count
    head = (
        f"import sys; rest = [p for p in sys.path if p != {str(SOURCE)!r}]; "
        f"sys.path[:] = {[*map(str, folders)]!r} + rest; "
    )
    return run_child([sys.executable, "-I", "-c", head + code])


@pytest.fixture
def core(tmp_path: Path) -> Path:
    (tmp_path / "orbiter" / "core").mkdir(parents=True)
    (tmp_path / "orbiter" / "core" / "__init__.py").write_text("HERE = True\n")
    return tmp_path


def test_there_is_no_init_file_in_the_namespace() -> None:
    assert not (SOURCE / "orbiter" / "__init__.py").exists()


def test_it_imports_alone() -> None:
    done = imports("import orbiter.train; print(orbiter.train.__name__)", SOURCE)
    assert done.stdout == "orbiter.train\n", done.stderr


def test_it_imports_beside_another_part_of_the_namespace(core: Path) -> None:
    done = imports("import orbiter.train, orbiter.core; print(orbiter.core.HERE)", SOURCE, core)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("order", [1, -1])
def test_it_imports_beside_a_core_that_extends_its_path_in_both_orders(
    core: Path, order: int
) -> None:
    (core / "orbiter" / "__init__.py").write_text(EXTENDING)
    folders = [SOURCE, core][::order]
    done = imports("import orbiter.train, orbiter.core; print(orbiter.core.HERE)", *folders)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("order", [1, -1])
def test_beside_a_core_that_closes_the_namespace_it_vanishes_as_the_install_page_says(
    core: Path, order: int
) -> None:
    (core / "orbiter" / "__init__.py").write_text("")
    done = imports("import orbiter.train", *[SOURCE, core][::order])
    assert "No module named 'orbiter.train'" in done.stderr
    page = (SOURCE.parent / "docs" / "install.md").read_text(encoding="utf-8")
    assert "No module named 'orbiter.train'" in page
