"""Facts about the source tree, read from its syntax: imports, cycles, lengths, comments.

Prints them as a script: `python tests/project/structure.py src/orbiter/train`.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple


class LongFunction(NamedTuple):
    """A function and the number of its lines, decorators and docstring included."""

    place: str
    lines: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A package's modules by dotted name."""

    root: Path
    package: str
    files: Mapping[str, Path]
    syntax: Mapping[str, ast.Module]

    @classmethod
    def read(cls, root: Path) -> Tree:
        """Parse every Python file below `root`, which must be the folder of `orbiter.train`."""
        package = "orbiter.train"
        files = {_module(path, root, package): path for path in sorted(root.rglob("*.py"))}
        syntax = {name: ast.parse(path.read_text("utf-8")) for name, path in files.items()}
        return cls(root, package, files, syntax)

    def imports(self, module: str) -> set[str]:
        """Return the package's own modules that `module` imports, wherever the import is written.

        Imports under TYPE_CHECKING and inside functions count: they are dependencies too. An
        import of a name from a package's `__init__` counts as an import of the module that has
        that name, if there is one.
        """
        targets: set[str] = set()
        for node in ast.walk(self.syntax[module]):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    targets.add(inner if inner in self.files else node.module)
        return {t for t in targets if t in self.files and t != module}

    def cycles(self) -> list[list[str]]:
        """Return the groups of modules that import each other, directly or through others."""
        graph = {module: self.imports(module) for module in self.files}
        return sorted(
            (sorted(group) for group in _components(graph) if len(group) > 1),
            key=len,
            reverse=True,
        )

    def long_functions(self, limit: int) -> list[LongFunction]:
        """Return the functions of more than `limit` lines, the longest first."""
        long = [
            LongFunction(f"{path.relative_to(self.root)}:{node.lineno} {node.name}", lines)
            for module, path in self.files.items()
            for node in ast.walk(self.syntax[module])
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > limit
        ]
        return sorted(long, key=lambda function: -function.lines)

    def lengths(self) -> dict[str, int]:
        """Return the number of lines of each file."""
        return {
            str(path.relative_to(self.root)): len(path.read_text("utf-8").splitlines())
            for path in self.files.values()
        }

    def folder_sizes(self) -> Counter[str]:
        """Return the number of Python files directly in each folder."""
        return Counter(str(path.parent.relative_to(self.root)) for path in self.files.values())

    def class_homes(self) -> dict[str, list[str]]:
        """Return for each class name the modules that define a class of that name."""
        homes: dict[str, list[str]] = defaultdict(list)
        for module, tree in self.syntax.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(module)
        return dict(homes)

    def comment_share(self) -> float:
        """Return the share of lines that hold nothing but a comment."""
        comments = total = 0
        for path in self.files.values():
            text = path.read_text("utf-8")
            total += len(text.splitlines())
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            comments += sum(
                token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
                for token in tokens
            )
        return comments / total


def _module(path: Path, root: Path, package: str) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _components(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the groups of nodes that reach each other; a node in no cycle is alone."""
    reached = {node: _reached(graph, node) for node in graph}
    together = {node: {n for n in reached[node] if node in reached[n]} | {node} for node in graph}
    return list({min(group): group for group in together.values()}.values())


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph[node]
    return reached


def main(root: Path) -> None:
    """Print the facts of a tree."""
    tree = Tree.read(root)
    lengths = tree.lengths()
    shared = {name: homes for name, homes in tree.class_homes().items() if len(homes) > 1}
    print(f"files {len(lengths)}, lines {sum(lengths.values())}")
    print(f"lines a file: median {median(lengths.values()):.0f}, largest {max(lengths.values())}")
    crowded = {folder: n for folder, n in tree.folder_sizes().items() if n > 25}
    print(f"folders of more than 25 files: {crowded or 'none'}")
    print(f"cycles: {len(tree.cycles())}, sizes {[len(c) for c in tree.cycles()]}")
    long, longish = len(tree.long_functions(60)), len(tree.long_functions(25))
    print(f"functions of more than 60 lines: {long}, of more than 25: {longish}")
    print(f"comment lines: {tree.comment_share():.1%}")
    print(f"class names used more than once: {len(shared)}")
    for cycle in tree.cycles():
        print("  cycle:", ", ".join(name.removeprefix("orbiter.train.") for name in cycle))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
