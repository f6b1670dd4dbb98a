"""Plain English: the words of the project's former private dialect do not come back."""

from __future__ import annotations

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
    r"\b(?:is|are|can be|could be) had\b": "is available",
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
