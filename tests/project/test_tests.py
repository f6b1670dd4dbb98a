"""Every test can fail, and every process that a test starts ends with it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
STARTERS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "os": {"system", "popen", "posix_spawn", "posix_spawnp"},
}


def started_directly(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that start a process without `tests/children.py`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in STARTERS:
            if {alias.name for alias in node.names} & STARTERS[node.module]:
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module = node.func.value
            if isinstance(module, ast.Name) and node.func.attr in STARTERS.get(module.id, ()):
                yield node.lineno


def test_every_child_process_is_started_by_the_helper_that_ends_it() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name != "children.py"
        for line in started_directly(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [], "use run_child or started_child of tests/children.py"


def test_a_process_started_directly_is_found() -> None:
    code = (
        "import subprocess\nsubprocess.run(['x'])\nfrom os import system\n"
        "async def f():\n    await asyncio.create_subprocess_exec('x')\n"
        "told: subprocess.CompletedProcess[str]\n"
    )
    assert list(started_directly(ast.parse(code))) == [3, 2, 5]
