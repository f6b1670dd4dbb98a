"""Where noise must not go: the spans of a text that a machine reads, or that carry a value.

Code (fenced, inline, indented, or a line that can be nothing else), JSON and dicts, calls such as
`search(query="x")`, XML tags and tool-call blocks, special tokens, placeholders, URLs, paths,
addresses, identifiers and numbers. One character on each side of a span belongs to it, so that
nothing can grow onto it. Left out: recognising code in the middle of a sentence without any mark.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]


def free_spans(text: str, extra: Sequence[re.Pattern[str]] = ()) -> list[Span]:
    """Return the parts of `text` that noise may change, in order."""
    if not extra and _is_prose(text):
        return [(0, len(text))]
    spans = sorted(
        span
        for spans in (_code_lines(text), _marked(text), _matches(text, extra))
        for span in spans
    )
    free: list[Span] = []
    at = 0
    for start, end in spans:
        if start - 1 > at:
            free.append((at, start - 1))
        at = max(at, end + 1)
    if at < len(text):
        free.append((at, len(text)))
    return free


def _is_prose(text: str) -> bool:
    """Say quickly that nothing needs protection; False means only that it is not certain."""
    if not text.isascii() or text.encode("ascii").translate(None, _PLAIN) or "www." in text:
        return False
    return not text.startswith(_CODE_STARTS) and not text.endswith((":", ";"))


_PLAIN = string.ascii_letters.encode() + b" .,;:!?'\"-"
_CODE_STARTS = (
    *("    ", "class ", "import ", "from ", "public ", "private "),
    *("SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE "),
)


def _matches(text: str, patterns: Sequence[re.Pattern[str]]) -> Iterator[Span]:
    return (match.span() for pattern in patterns for match in pattern.finditer(text))


def _code_lines(text: str) -> Iterator[Span]:
    first = _CODE_LINE.match(text)
    if first is not None:
        yield first.span()
    at = text.find("\n")
    while at >= 0:
        match = _CODE_LINE.match(text, at + 1)
        if match is not None and match.end() > match.start():
            yield match.span()
        at = text.find("\n", at + 1)


def _marked(text: str) -> Iterator[Span]:
    """Yield the spans that some special character gives away, left to right, not overlapping."""
    at = 0
    while (match := _SPECIAL.search(text, at)) is not None:
        place = match.start()
        mark = "0" if text[place].isdigit() else text[place]
        span = _READERS[mark](text, place, at)
        if span is None:
            at = place + 1
        else:
            yield span
            at = max(span[1], place + 1)


_SPECIAL = re.compile(r"[\d`~{\[<(/\\_@$%]|www\.")

_CODE_LINE = re.compile(
    r"(?:(?:\ {4}|\t|>>>\ |\$\ |\#include\b)"
    r"|(?:async\ )?def\ \w+\(|class\ \w+[:(]|import\ [\w.]+(?=\ as\ |,|;|$)|from\ [\w.]+\ import\ "
    r"|(?:const|let|var)\ \w+\ ?=|(?:export\ )?function\b.*[({]|public\ |private\ "
    r"|(?:if|elif|else|for|while|with|try|except|finally)\b.*:$"
    r"|(?:SELECT|INSERT\ INTO|UPDATE|DELETE\ FROM|CREATE\ TABLE)\ "
    r"|\ *[\w.\[\]\"']+\ ?[-+*/|&]?=\ ?\S.*$"
    r"|.*[{}]$|.*[(){}\[\]=<>+].*;$|(?:\S+\ ){0,2}\S+;$).*",
    re.MULTILINE | re.VERBOSE,
)
_FENCE = re.compile(r"(`{3,}|~{3,})(?:.*?(?:\1|\Z))", re.DOTALL)
_INLINE = re.compile(r"(`+)(?:[^`\n]|(?!\1)`)*\1")
_TOKEN = re.compile(r"<\|[^|<>]{1,80}\|>|<\uff5c[^<>]{1,80}\uff5c>|</?[A-Za-z_!?][^<>]{0,400}>")
_BLOCK = re.compile(
    r"<([\w:.-]*(?:tool|func|call|invoke|param|arg|code|json|xml|script)[\w:.-]*)\b[^<>]*>"
    r".*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
_BRACKET_TOKEN = re.compile(r"\[/?[A-Z][A-Z0-9_ ]*\]")
_SLOT = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{[^{}\n]*\}")
_VARIABLE = re.compile(r"\$(?:\{[^{}\n]*\}|\w+)")
_PERCENT = re.compile(r"%(?:\(\w+\))?[-#0+ ]*\d*(?:\.\d+)?[sdrifxge]\b")
_DECODER = json.JSONDecoder()


def _backtick(text: str, place: int, _: int) -> Span | None:
    match = _FENCE.match(text, place) or _INLINE.match(text, place)
    return match.span() if match else None


def _angle(text: str, place: int, _: int) -> Span | None:
    match = _BLOCK.match(text, place) or _TOKEN.match(text, place)
    return match.span() if match else None


def _brace(text: str, place: int, _: int) -> Span | None:
    end = _json_end(text, place) or _balanced_end(text, place, "{", "}")
    if end is not None:
        return place, end
    match = _SLOT.match(text, place)
    return match.span() if match else None


def _bracket(text: str, place: int, _: int) -> Span | None:
    end = _json_end(text, place)
    if end is not None:
        return place, end
    match = _BRACKET_TOKEN.match(text, place)
    return match.span() if match else None


def _paren(text: str, place: int, least: int) -> Span | None:
    start = _word_start(text, place, least)
    if start == place:
        return None
    end = _balanced_end(text, place, "(", ")")
    return None if end is None else (start, end)


def _slash(text: str, place: int, least: int) -> Span | None:
    start, end = _run(text, place, least)
    token = text[start:end]
    if token.startswith(("/", "./", "../", "~/")) or token.count("/") > 1 or "." in token:
        return start, end
    return None


def _run_around(text: str, place: int, least: int) -> Span | None:
    start, end = _run(text, place, least)
    return (start, end) if end - start > 1 else None


def _word(text: str, place: int, least: int) -> Span | None:
    match = _WORD_REST.match(text, place)
    return _word_start(text, place, least), match.end() if match else place + 1


def _dollar(text: str, place: int, _: int) -> Span | None:
    match = _VARIABLE.match(text, place)
    return match.span() if match else None


def _percent(text: str, place: int, _: int) -> Span | None:
    match = _PERCENT.match(text, place)
    return match.span() if match else None


_READERS: dict[str, Callable[[str, int, int], Span | None]] = {
    "0": _word,
    "_": _word,
    "`": _backtick,
    "~": _backtick,
    "<": _angle,
    "{": _brace,
    "[": _bracket,
    "(": _paren,
    "/": _slash,
    "\\": _run_around,
    "@": _run_around,
    "w": _run_around,
    "$": _dollar,
    "%": _percent,
}
"""Each takes the text, the place of its character, and how far to the left it may reach."""

_WORD_REST = re.compile(r"\w+(?:[.,:/%+-]\w+)*%?")


def _json_end(text: str, place: int) -> int | None:
    try:
        return _DECODER.raw_decode(text, place)[1]
    except (ValueError, RecursionError):
        return None


def _balanced_end(text: str, place: int, opening: str, closing: str) -> int | None:
    depth = 0
    for match in re.finditer(f"[{opening}{closing}]", text[place : place + 4000]):
        depth += 1 if match.group() == opening else -1
        if depth == 0:
            return place + match.end()
    return None


def _word_start(text: str, place: int, least: int) -> int:
    while place > least and (text[place - 1].isalnum() or text[place - 1] in "_."):
        place -= 1
    return place


def _run(text: str, place: int, least: int) -> Span:
    """Return the run of non-spaces around `place`, without closing punctuation."""
    start, end = place, place
    while start > least and not text[start - 1].isspace() and text[start - 1] not in "([<\"'":
        start -= 1
    while end < len(text) and not text[end].isspace() and text[end] not in "<>\"'":
        end += 1
    while end > place + 1 and text[end - 1] in ".,;:!?)]":
        end -= 1
    return start, end
