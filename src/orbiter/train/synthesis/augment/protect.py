"""Finds the spans of a text that noise must not touch: text that programs read, and values.

Code (fenced, inline, indented, or a line that can only be code), JSON and dicts, calls such as
`search(query="x")`, XML tags and tool-call blocks, special tokens, placeholders, URLs, paths,
addresses, identifiers and numbers. A span includes one character on each side, so that no inserted
character extends it. Not supported: recognising code in the middle of a sentence without any mark.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]


def free_spans(
    text: str, extra: Sequence[re.Pattern[str]] = (), names: Sequence[str] = ()
) -> list[Span]:
    """Return the parts of `text` that noise may change, in order.

    `extra` are patterns and `names` texts that must not change; case is ignored.
    """
    if not extra and not names and _is_prose(text):
        return [(0, len(text))]
    spans = sorted(
        span
        for spans in (
            _code_lines(text),
            _marked(text),
            _identifiers(text),
            _matches(text, extra),
            _occurrences(text, names),
        )
        for span in spans
    )
    free: list[Span] = []
    at = 0
    for start, end in spans:
        # One character on each side stays too, as the file's first lines explain.
        if start - 1 > at:
            free.append((at, start - 1))
        at = max(at, end + 1)
    if at < len(text):
        free.append((at, len(text)))
    return free


def _is_prose(text: str) -> bool:
    """Return whether certainly nothing needs protection; a fast path."""
    # `translate` deletes the plain characters; what is left needs a closer look.
    if not text.isascii() or text.encode("ascii").translate(None, _PLAIN) or "www." in text:
        return False
    if _may_hold_name(text):
        return False
    return not text.startswith(_CODE_STARTS) and not text.endswith((":", ";"))


_PLAIN = string.ascii_letters.encode() + b" .,;:!?'\"-"
_CODE_STARTS = (
    *("    ", "class ", "import ", "from ", "public ", "private "),
    *("SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE "),
)


def _may_hold_name(text: str) -> bool:
    """Return whether text of letters and ordinary punctuation can match `_NAME`; a fast path."""
    return bool(
        ("." in text and _INNER_DOT.search(text))
        or ("-" in text and _NAME.search(text))
        or (not text.islower() and _INNER_CAPITAL.search(text))
        or _HASH_RUN.search(text)
    )


_INNER_DOT = re.compile(r"\.[A-Za-z]")
_INNER_CAPITAL = re.compile("[a-z][A-Z]")
_HASH_RUN = re.compile("[a-f]{7}")


def _matches(text: str, patterns: Sequence[re.Pattern[str]]) -> Iterator[Span]:
    return (match.span() for pattern in patterns for match in pattern.finditer(text))


def _occurrences(text: str, names: Sequence[str]) -> Iterator[Span]:
    """Yield the spans where the names occur as whole words, in any case."""
    folded = text.casefold()
    # Folding may change lengths (a German sharp s becomes two letters); then positions would shift.
    lowered = folded if len(folded) == len(text) else text
    for name in names:
        wanted = name.casefold() if lowered is folded else name
        at = lowered.find(wanted)
        while at >= 0:
            end = at + len(wanted)
            if not (_inside_word(text, at - 1, at) or _inside_word(text, end - 1, end)):
                yield at, end
            at = lowered.find(wanted, at + 1)


def _inside_word(text: str, left: int, right: int) -> bool:
    """Return whether a boundary between two characters is inside a word of a script with spaces."""
    if left < 0 or right >= len(text):
        return False
    return _spaced_letter(text[left]) and _spaced_letter(text[right])


def _spaced_letter(char: str) -> bool:
    """Return whether a character is a letter or digit of a script with spaces between words."""
    if char.isascii():
        return char.isalnum() or char == "_"
    return char.isalnum() and _UNSPACED.match(char) is None


def names_in_calls(action: str, calls: Sequence[Mapping[str, object]] | None) -> list[str]:
    """Return the names and values that an action uses, which must remain readable in its state.

    Those are the values in the arguments of its calls (of `calls`, or of calls and JSON within
    the text), whole and word for word, and the words of the action that are not ordinary words.
    """
    names: set[str] = set()
    for call in calls or ():
        function = call.get("function", call)
        inner = function if isinstance(function, Mapping) else {}
        arguments = inner.get("arguments", inner.get("input"))
        names |= set(_values(_parsed(arguments)))
    for match in _QUOTED.finditer(action):
        names.add(match[1] or match[2])
    names |= {match[0] for match in _ARGUMENT.finditer(action)}
    names |= {text[start:end] for text in [action] for start, end in _identifiers(text)}
    # Longer spans are whole blocks of code or JSON, of which the words are taken below.
    names |= {action[start:end] for start, end in _marked(action) if end - start < _LONGEST_NAME}
    words = {word for name in names for word in _WORD.findall(name) if _worth_keeping(word)}
    return sorted({name for name in names | words if 1 < len(name) < _LONGEST_NAME})


def _parsed(arguments: object) -> object:
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments


def _values(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _worth_keeping(word: str) -> bool:
    """Return whether a word of a value is a name rather than a word like "the" or "of"."""
    return len(word) > 3 or not word.islower()


def _identifiers(text: str) -> Iterator[Span]:
    return (match.span() for match in _NAME.finditer(text))


_NAME = re.compile(
    r"[A-Za-z_][\w-]*(?:\.[A-Za-z][\w-]*)+"  # main.py, example.org, a.b
    r"|\b[a-z]+[A-Z]\w*|\b[A-Z][a-z]+[A-Z]\w*"  # camelCase, CamelCase
    r"|\b[A-Z]{2,}(?:-[A-Z]+)+\b"  # ACME-PROD
    r"|\b[A-Za-z]+(?:-[A-Za-z]+){2,}\b"  # my-service-name
    r"|\b(?=[a-f]*[a-f]{7})[a-f]{7,40}\b"  # a hash that happens to hold no digit
    r"|[#&@][A-Za-z][\w-]*",  # a channel, a handle
    re.ASCII,
)
_QUOTED = re.compile(r"\"([^\"\\\n]{1,200})\"|'([^'\\\n]{2,200})'(?!\w)")
_ARGUMENT = re.compile(r"(?<=[=(:])[\w.@/-]+(?=[,)])")
_WORD = re.compile(r"[\w.@/-]*\w")
_LONGEST_NAME = 200
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff\uf900-\ufaff]")


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
    """Yield the spans that contain a special character, left to right, not overlapping."""
    at = 0
    while (match := _SPECIAL.search(text, at)) is not None:
        position = match.start()
        # All digits have one reader.
        mark = "0" if text[position].isdigit() else text[position]
        span = _READERS[mark](text, position, at)
        if span is None:
            at = position + 1
        else:
            yield span
            # An empty span must not stop the search from advancing.
            at = max(span[1], position + 1)


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


def _backtick(text: str, position: int, _: int) -> Span | None:
    match = _FENCE.match(text, position) or _INLINE.match(text, position)
    return match.span() if match else None


def _angle(text: str, position: int, _: int) -> Span | None:
    match = _BLOCK.match(text, position) or _TOKEN.match(text, position)
    return match.span() if match else None


def _brace(text: str, position: int, _: int) -> Span | None:
    # JSON first, because braces inside its strings would upset the counting.
    end = _json_end(text, position) or _balanced_end(text, position, "{", "}")
    if end is not None:
        return position, end
    match = _SLOT.match(text, position)
    return match.span() if match else None


def _bracket(text: str, position: int, _: int) -> Span | None:
    end = _json_end(text, position)
    if end is not None:
        return position, end
    match = _BRACKET_TOKEN.match(text, position)
    return match.span() if match else None


def _paren(text: str, position: int, least: int) -> Span | None:
    start = _word_start(text, position, least)
    # A parenthesis without a name before it is ordinary prose.
    if start == position:
        return None
    end = _balanced_end(text, position, "(", ")")
    return None if end is None else (start, end)


def _slash(text: str, position: int, least: int) -> Span | None:
    start, end = _run(text, position, least)
    token = text[start:end]
    # "and/or" is prose; a path begins so, or has several slashes or a suffix.
    if token.startswith(("/", "./", "../", "~/")) or token.count("/") > 1 or "." in token:
        return start, end
    return None


def _run_around(text: str, position: int, least: int) -> Span | None:
    start, end = _run(text, position, least)
    return (start, end) if end - start > 1 else None


def _word(text: str, position: int, least: int) -> Span | None:
    """Return the token around a digit: letters, digits and what joins them (ORD-12345, v1.2)."""
    end = position + 1
    while end < len(text) and _in_token(text, end):
        end += 1
    if end < len(text) and text[end] in "%":
        end += 1
    start = position
    while start > least and _in_token(text, start - 1):
        start -= 1
    return start, end


def _in_token(text: str, position: int) -> bool:
    """Return whether a character belongs to the token around it; joints need letters around."""
    char = text[position]
    if _spaced_letter(char):
        return True
    if char not in _JOINTS or not 0 < position < len(text) - 1:
        return False
    return _spaced_letter(text[position - 1]) and _spaced_letter(text[position + 1])


def _dollar(text: str, position: int, _: int) -> Span | None:
    match = _VARIABLE.match(text, position)
    return match.span() if match else None


def _percent(text: str, position: int, _: int) -> Span | None:
    match = _PERCENT.match(text, position)
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
"""Each function takes the text, the position of its character, and the leftmost allowed start."""

_JOINTS = "._-:/+#@,'\u2010\u2011\u2013"


def _json_end(text: str, position: int) -> int | None:
    try:
        return _DECODER.raw_decode(text, position)[1]
    except (ValueError, RecursionError):
        return None


def _balanced_end(text: str, position: int, opening: str, closing: str) -> int | None:
    depth = 0
    # Bounded, or a text of many open brackets would take quadratic time.
    for match in re.finditer(f"[{opening}{closing}]", text[position : position + 4000]):
        depth += 1 if match.group() == opening else -1
        if depth == 0:
            return position + match.end()
    return None


def _word_start(text: str, position: int, least: int) -> int:
    while position > least and (_spaced_letter(text[position - 1]) or text[position - 1] == "."):
        position -= 1
    return position


def _run(text: str, position: int, least: int) -> Span:
    """Return the run of non-spaces around `position`, without closing punctuation."""
    start, end = position, position
    while start > least and not text[start - 1].isspace() and text[start - 1] not in "([<\"'":
        start -= 1
    while end < len(text) and not text[end].isspace() and text[end] not in "<>\"'":
        end += 1
    # A URL at the end of a sentence does not include its full stop.
    while end > position + 1 and text[end - 1] in ".,;:!?)]":
        end -= 1
    return start, end
