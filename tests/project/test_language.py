"""Plain English: the words of the project's former private dialect do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DIALECT = {
    r"\b(?:is|are|was|were|be|been) told\b": "given, reported",
    r"\btold (?:apart|before)\b": "distinguished, known before",
    r"\bstands? (?:in|at|on|behind|there|here|with)\b|\bstood\b": "is in, is",
    r"\b(?-i:is|are) (?-i:none)\b": "is not one",
    r"\b(?:goes|went|go|going) on from\b": "continues from",
    r"\b(?:stopped|finished|read|anything|something|nothing|more|text) behind\b": "after",
    r"\bbehind (?:step|each|every|the (?:last|first|array|step|work|value))\b": "after",
    r"\bwhom\b": "who",
    # Not "the metrics of its own tasks", which is plain English.
    r"\bof (?:its|their|his|one's) own\b(?! (?!and|or|in|for|to|that|with|is|are)\w)": "separate",
    r"\btaken over from\b": "copied from",
    r"\bso many\b": "that many, this number of",
    r"\bin vain\b": "without effect",
    r"\bat a glance\b": "quickly",
    r"\bhang together\b": "belong together",
    r"\bwho deserves what\b": "credit assignment",
    r"\bcomes? out even\b": "divides evenly",
    r"\b(?:is|are|can be|cannot be|could be) had\b": "is available",
    r"\btell(?:s|ing)? of\b": "report",
    r"\bunder way\b": "active, in progress",
    r"\bin the making\b": "under construction",
    r"\bin force\b": "applied",
    r"\blaid? out anew\b|\b(?:begun?|learnt|run|drawn) anew\b": "again",
    r"\bturned down\b": "rejected",
    r"\b(?:gives?|gave) away\b": "reveals",
    r"\bgiven up\b": "abandoned",
    r"\blet go of\b": "release",
    r"\bwhoever\b": "the client that",
    r"\bkeeps? nothing\b": "stores nothing",
    r"\bread on\b": "continue",
    r"^\s*(?:\"\"\")?Say (?:whether|why|where|what|that|of)\b": "Return whether, Describe",
    r"\b(?:is|are) no (?:part|item|call|stream|letter|number|result)\b": "is not a",
    r"\bcounts? for nothing\b": "is ignored",
    r"\bthings? (?:is |are |was |were )?labelled\b|\blabel of (?:a|each) thing\b": "answer, pair",
    # Not "Of the 200 answers, 12 are wrong".
    r"(?:^\s*|\w: |\"\"\"|[.] )(?-i:Of) (?:an?|each|every)\b": "For a, The ... of each",
    r"^\s*\w+: (?-i:Of) the\b": "The ... of the",
}
"""Each pattern with what to write instead."""


def pages() -> list[Path]:
    source = (ROOT / "src").rglob("*.py")
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *source]


def findings(text: str, name: str) -> list[str]:
    return [
        f"{name}:{number}: {match[0]!r}: write {instead}"
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, instead in DIALECT.items()
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]


def test_no_word_of_the_dialect_is_left() -> None:
    assert [
        finding
        for page in pages()
        for finding in findings(page.read_text("utf-8"), str(page.relative_to(ROOT)))
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        "stopped behind step 7",
        "The value is told before the run.",
        "Whom it is taken over from.",
        "a folder of its own",
        "what stands in the file",
        "a reward that cannot be had without tools",
        "Of each person the last label counts.",
        "    tokenizer: Of the model in training.",
        "12 things labelled",
    ],
)
def test_the_dialect_is_recognised(line: str) -> None:
    assert findings(line, "example")


SAYS_NOTHING = frozenset({"told", "found", "said"})
"""Names of variables that do not say what they hold."""


def empty_names(text: str, name: str) -> list[str]:
    tree = ast.parse(text)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    # A field's name may be a key of JSON that other programs read.
    fields = {
        id(line.target) for each in classes for line in each.body if isinstance(line, ast.AnnAssign)
    }
    bound = (
        (node.id if isinstance(node, ast.Name) else node.arg, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.arg)
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        if id(node) not in fields
    )
    return [f"{name}:{line}: {held}" for held, line in bound if held in SAYS_NOTHING]


def test_variables_are_named_after_what_they_hold() -> None:
    sources = sorted((ROOT / "src").rglob("*.py"))
    assert [
        finding
        for source in sources
        for finding in empty_names(source.read_text("utf-8"), str(source.relative_to(ROOT)))
    ] == []
    assert empty_names("def f(told):\n    said = [found for found in told]", "example")
