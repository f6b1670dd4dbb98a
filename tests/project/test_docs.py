"""Every Python block of the README and the guide runs as it stands, page by page."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = {"README.md", "train.md", "evolve.md", "engine.md", "demo.md"}

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def cases() -> list[object]:
    return [pytest.param(page, id=page.name, marks=marks(page)) for page in PAGES if blocks(page)]


def marks(page: Path) -> list[pytest.MarkDecorator]:
    """Slow pages; and frameworks that keep their connections for as long as the process lives."""
    if page.parent.name == "howto":
        return [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]
    return [pytest.mark.slow] if page.name in SLOW else []


def run(source: str, namespace: dict[str, object], name: str, runner: asyncio.Runner) -> None:
    """Run a block as a notebook would: `await` may stand at its top."""
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    done = eval(code, namespace)
    if inspect.iscoroutine(done):
        runner.run(done)


@pytest.mark.parametrize("page", cases())
def test_the_blocks_of_a_page_run_in_their_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    with asyncio.Runner() as runner:
        for number, source in enumerate(blocks(page), start=1):
            run(source, namespace, f"{page.name}, block {number}", runner)
    namespace.clear()
    gc.collect()  # here, where what is left open belongs


def needs_a_notebook(source: str) -> bool:
    try:
        compile(source, "block", "exec", dont_inherit=True)
    except SyntaxError:  # an `await` outside a function
        return True
    return False


def test_a_page_with_await_outside_a_function_says_where_that_works() -> None:
    pages = {
        page.name: page.read_text(encoding="utf-8")
        for page in PAGES
        if any(needs_a_notebook(source) for source in blocks(page))
    }
    assert {"README.md", "index.md", "train_agent.md"} <= pages.keys()
    assert [name for name, text in pages.items() if "notebook" not in text] == []
