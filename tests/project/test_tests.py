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


ANY_ERROR = {"Exception", "BaseException"}


def cannot_fail(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that accept whatever happens: any exception, any text, or `or True`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises":
            if node.args and ast.unparse(node.args[0]) in ANY_ERROR:
                yield node.lineno
        elif isinstance(node, ast.keyword) and node.arg == "match":
            if isinstance(node.value, ast.Constant) and node.value.value in {"", ".", ".*", ".+"}:
                yield node.value.lineno
        elif isinstance(node, ast.BoolOp) and any(
            isinstance(each, ast.Constant) and each.value is True for each in node.values
        ):
            yield node.lineno


def test_no_test_accepts_whatever_happens() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in cannot_fail(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [], "name the error, and what its message must say"


def test_a_test_that_cannot_fail_is_found() -> None:
    code = (
        "with pytest.raises(Exception, match='x'):\n    f()\n"
        "with pytest.raises(ValueError, match='.*'):\n    f()\nassert f() or True\n"
    )
    assert sorted(cannot_fail(ast.parse(code))) == [1, 3, 5]
