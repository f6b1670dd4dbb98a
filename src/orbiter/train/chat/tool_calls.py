"""Tool calls in a reply's text: three written forms become OpenAI's `tool_calls`.

    <tool_call>{"name": "weather", "arguments": {"city": "Graz"}}</tool_call>  anywhere, several too
    {"name": "weather", "arguments": {"city": "Graz"}}                         the whole reply
    [weather(city="Graz"), weather(city="Linz")]                               the whole reply

The first is what the prompt asks for where the chat template has no form of its own. The second
may stand in a list or between code fences, and may say "parameters"; the third may be a single
call. Both count only if every name is one of the tools on offer: a reply may be JSON, or code, for
other reasons. What does not parse stays text. Left out: forms that need a model's own grammar.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_TAGGED = re.compile(rf"{OPENING}\s*(.*?)\s*(?:{CLOSING}|\Z)", re.DOTALL)
_FENCED = re.compile(r"\A```[a-z_]*\n(.*?)\n?```\Z", re.DOTALL)


class Call(NamedTuple):
    """One call that the model wrote."""

    name: str
    arguments: Mapping[str, object]

    def arguments_text(self) -> str:
        """Return the arguments as OpenAI sends them: a text of JSON."""
        return json.dumps(self.arguments, ensure_ascii=False)


class Parsed(NamedTuple):
    """A reply, taken apart."""

    content: str
    """What was said beside the calls."""
    calls: list[Call]


def parse_calls(text: str, names: Sequence[str]) -> Parsed:
    """Find the calls in a reply; `names` are the tools on offer. No calls: the text as it is."""
    tagged = [(match, _in_json(match[1])) for match in _TAGGED.finditer(text)]
    if any(calls for _, calls in tagged):
        content = text
        for match, calls in reversed(tagged):
            if calls:
                content = content[: match.start()] + content[match.end() :]
        return Parsed(content.rstrip(), [call for _, calls in tagged for call in calls])
    fenced = _FENCED.match(text.strip())
    whole = fenced[1].strip() if fenced else text.strip()
    calls = _in_json(whole)
    if not calls and any(f"{name}(" in whole for name in names):
        calls = _in_python(whole)
    if calls and all(call.name in names for call in calls):
        return Parsed("", calls)
    return Parsed(text, [])


def settled(text: str, names: Sequence[str]) -> int:
    """Count the characters of a growing reply that will not turn out to belong to a call."""
    begun = text.lstrip()
    if begun.startswith(("{", "[", "`")):
        return 0
    if any(f"{name}(".startswith(begun) or begun.startswith(f"{name}(") for name in names):
        return 0
    opened = text.find(OPENING)
    if opened >= 0:
        return len(text[:opened].rstrip())
    held = next((k for k in range(len(OPENING), 0, -1) if text.endswith(OPENING[:k])), 0)
    return len(text[: len(text) - held].rstrip())


def _in_json(text: str) -> list[Call]:
    """Read a call, or a list of them; nothing if it is anything else."""
    try:
        found = json.loads(text)
        return [_json_call(each) for each in (found if isinstance(found, list) else [found])]
    except (ValueError, RecursionError):
        return []


def _json_call(found: object) -> Call:
    if not isinstance(found, dict):
        raise ValueError("no object")
    arguments = found.get("arguments", found.get("parameters"))
    return _checked(
        found.get("name"), json.loads(arguments) if isinstance(arguments, str) else arguments
    )


def _checked(name: object, arguments: object) -> Call:
    """Make a call of what JSON and UTF-8 can carry: no NaN, no set, no half of a surrogate."""
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a name and an object of arguments make a call")
    json.dumps([name, arguments], ensure_ascii=False, allow_nan=False).encode()
    return Call(name, arguments)


def _in_python(text: str) -> list[Call]:
    """Read `f(a=1)`, or a list of such calls, whose arguments are plain values given by name."""
    try:
        with warnings.catch_warnings(action="ignore"):  # the model's odd escapes are its own
            body = ast.parse(text, mode="eval").body
        written = body.elts if isinstance(body, ast.List) else [body]
        return [_python_call(each) for each in written]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return []


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("no call with arguments by name")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("** in a call")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return _checked(node.func.id, arguments)
