"""Plain English: the words of the project's former private dialect do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DIALECT = {
    r"\b(?:is|are|was|were|be|been) told\b": "given, reported, said",
    r"\btold (?:apart|before)\b": "distinguished, known before",
    r"\bstands? (?:in|for|at|on|beside|behind|with|there|here)\b": "is in, is",
    r"\bstood\b": "was",
    r"\bis none\b|\bare none\b": "is not one, there is none of it",
    r"\b(?:goes|went|go|going) on from\b": "continues from",
    r"\bbehind (?:it|the|step|that|each|a|an|every)\b": "after",
    r"\bwhom\b": "who",
    r"\bof (?:its|their|his|one's) own\b": "its, separate",
    r"\btaken over from\b": "copied from",
    r"\bso many\b": "that many, this number of",
    r"\bin vain\b": "without effect",
    r"\bat one blow\b|\bat a glance\b": "quickly",
    r"\bhang together\b": "belong together",
    r"\bWho deserves what\b": "Credit assignment",
    r"\bby name of\b": "by the name of",
    r"\bcomes? out (?:even|right)\b": "divides evenly",
    r"\bhave (?:its|their) end\b": "end",
    r"\bput up with\b": "accept",
    r"\bis had\b|\bare had\b|\bcan be had\b": "is available",
    r"\bwants? (?:a|an|the) (?:value|file|name|folder)\b": "needs",
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
    ],
)
def test_the_dialect_is_recognised(line: str) -> None:
    assert findings(line, "example")
