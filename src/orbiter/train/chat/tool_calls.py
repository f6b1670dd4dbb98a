"""Writes tool calls as text in one form, and reads them in several.

A call is written on one line, with its arguments as an object where they are a JSON object:

    <tool_call>{"name": "weather", "arguments": {"city": "Graz"}}</tool_call>

Arguments that are anything else (broken JSON, a list, NaN, a bare word) are written as a JSON
string that holds them unchanged, so that `read_call` returns exactly what the model wrote. A custom
call, whose input is free text, has "input" instead of "arguments". Any other kind of call, such as
a search that the API's server ran itself, is written as the whole object that describes it.

`parse_calls` reads what a model wrote in its reply, which is one of three forms:

    <tool_call>{"name": "weather", "arguments": {"city": "Graz"}}</tool_call>  anywhere, repeatedly
    {"name": "weather", "arguments": {"city": "Graz"}}                         the whole reply
    [weather(city="Graz"), weather(city="Linz")]                               the whole reply

The second may be in a list or between code fences, and may say "parameters"; the third may be a
single call. Both count only if every name is an offered tool, because a reply may be JSON or code
for other reasons. Text that does not parse stays text.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_TAGGED = re.compile(rf"{OPENING}\s*(.*?)\s*(?:{CLOSING}|\Z)", re.DOTALL)
_FENCED = re.compile(r"\A```[a-z_]*\n(.*?)\n?```\Z", re.DOTALL)


# Writing and reading the project's own form.


def write_call(call: Message) -> str:
    """Return a call as one line of text."""
    function = call.get("function")
    if isinstance(function, Mapping):
        name, arguments = function.get("name"), function.get("arguments")
        # Cached by text, because mappings cannot be keys.
        return _written_again(str(name or ""), arguments_text(arguments))
    custom = call.get("custom")
    if isinstance(custom, Mapping) and isinstance(custom.get("input"), str):
        return _tagged({"name": str(custom.get("name") or ""), "input": custom["input"]})
    # A call without the usual wrapper, as some templates and data sets have it.
    if "name" in call and "type" not in call:
        return _written_again(str(call["name"] or ""), arguments_text(call.get("arguments")))
    return _tagged({"call": dict(call)})


def read_call(text: str) -> dict[str, Any]:
    """Return the call that `write_call` wrote, without its id.

    Raises:
        DataError: the text is not a call in this form.
    """
    inner = text.removeprefix(OPENING).removesuffix(CLOSING)
    try:
        value = json.loads(inner)
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected a tool call in JSON, got {text[:80]!r}") from error
    # The form for calls that the short form cannot hold: see `write_call`.
    if isinstance(value, dict) and isinstance(value.get("call"), dict):
        return dict(value["call"])
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise DataError(f"expected a tool call with a name, got {text[:80]!r}")
    # A custom tool has `input`, a function `arguments`.
    if "input" in value:
        return {"type": "custom", "custom": {"name": value["name"], "input": value["input"]}}
    arguments = arguments_text(value.get("arguments"))
    return {"type": "function", "function": {"name": value["name"], "arguments": arguments}}


def is_call_line(line: str) -> bool:
    """Return whether a line of text is a call as `write_call` writes it."""
    return line.startswith(OPENING) and line.endswith(CLOSING)


def arguments_text(arguments: object) -> str:
    """Return a call's arguments as text, as OpenAI sends them; absent arguments are "{}"."""
    if isinstance(arguments, str):
        return arguments
    return "{}" if arguments is None else as_json(arguments)


def arguments_of(arguments: object) -> object:
    """Return arguments as an object if they are a JSON object; anything else unchanged.

    An object that JSON text could not give back exactly (repeated keys, NaN, an infinite number)
    also stays text.
    """
    if not isinstance(arguments, str):
        return arguments
    parsed = _object_in(arguments)
    return arguments if parsed is None else parsed


def calls_with_text(calls: Sequence[Message]) -> list[dict[str, Any]]:
    """Return calls with their arguments as JSON text, as OpenAI sends them."""
    return [_with_arguments(call, _objects_as_text) for call in calls]


def calls_with_objects(calls: Sequence[Message]) -> list[dict[str, Any]]:
    """Return calls with their arguments as an object, as chat templates want them."""
    return [_with_arguments(call, arguments_of) for call in calls]


def function_call(call_id: object, name: object, arguments: object) -> dict[str, Any]:
    """Return a call of a function in OpenAI's form."""
    return {
        "id": str(call_id or ""),
        "type": "function",
        "function": {"name": str(name or ""), "arguments": arguments_text(arguments)},
    }


def custom_call(call_id: object, name: object, text: object) -> dict[str, Any]:
    """Return a call of a custom tool, whose input is free text, in OpenAI's form."""
    # Free text stays as it is; anything else is written as JSON.
    given = text if isinstance(text, str) else "" if text is None else as_json(text)
    custom = {"name": str(name or ""), "input": given}
    return {"id": str(call_id or ""), "type": "custom", "custom": custom}


def name_of(call: Message) -> str:
    """Return the name of the tool that a call is for; "" if it has none."""
    for holder in (call.get("function"), call.get("custom"), call):
        if isinstance(holder, Mapping) and isinstance(name := holder.get("name"), str):
            return name
    return ""


def input_of(call: Message) -> str:
    """Return what a call hands to its tool, as text."""
    custom = call.get("custom")
    if isinstance(custom, Mapping):
        return str(custom.get("input") or "")
    function = call.get("function")
    holder = function if isinstance(function, Mapping) else call
    return arguments_text(holder.get("arguments", holder.get("input")))


def as_json(value: object) -> str:
    """Return a value as JSON text the way models write it: a space after each comma and colon.

    Raises:
        DataError: it is nested too deep.
    """
    try:
        return _ENCODE(value)
    except RecursionError:
        raise DataError("a call's arguments are nested too deep") from None


def _written(name: str, arguments: str) -> str:
    return _tagged({"name": name, "arguments": arguments_of(arguments)})


_written_again: Callable[[str, str], str] = lru_cache(maxsize=1 << 10)(_written)
"""Results are cached, because a call is written with its reply and again in each later prompt."""


def _tagged(spoken: Mapping[str, object]) -> str:
    return f"{OPENING}{as_json(spoken)}{CLOSING}"


def _object_in(text: str) -> dict[str, Any] | None:
    """Return the JSON object in a text; None if it is not an object that survives rewriting."""
    if text.lstrip()[:1] != "{":
        return None
    try:
        value = _STRICT.decode(text)
        # Only a text with an escape can hold half a surrogate pair.
        if "\\u" in text:
            # Half a surrogate pair cannot be stored as UTF-8: it becomes U+FFFD.
            pairs = _ENCODE(value).encode("utf-16", "surrogatepass")
            value = _STRICT.decode(pairs.decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    # A dict would silently keep only the last value.
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is infinite")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
)
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def _with_arguments(call: Message, form: Callable[[object], object]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or "arguments" not in function:
        return dict(call)
    return {**call, "function": {**function, "arguments": form(function["arguments"])}}


def _objects_as_text(arguments: object) -> object:
    return as_json(arguments) if isinstance(arguments, Mapping | list) else arguments


# Reading what a model wrote in its reply.


class WrittenCall(NamedTuple):
    """One call that the model wrote."""

    name: str
    arguments: Mapping[str, object]

    def arguments_text(self) -> str:
        """Return the arguments as OpenAI sends them: JSON text."""
        return json.dumps(self.arguments, ensure_ascii=False)


class ParsedReply(NamedTuple):
    """A reply, split into text and calls."""

    content: str
    """The text outside the calls."""
    calls: list[WrittenCall]


def parse_calls(text: str, names: Sequence[str]) -> ParsedReply:
    """Split a reply into text and calls; a reply without calls stays as it is.

    Args:
        text: The reply.
        names: The names of the tools on offer.
    """
    tagged = [(match, _in_json(match[1])) for match in _TAGGED.finditer(text)]
    if any(calls for _, calls in tagged):
        content = text
        # From the end, so that the positions of earlier matches stay valid.
        # Only matches that parsed are removed; a broken one stays text.
        for match, calls in reversed(tagged):
            if calls:
                content = content[: match.start()] + content[match.end() :]
        return ParsedReply(content.rstrip(), [call for _, calls in tagged for call in calls])
    # Without tags, JSON or code may be an ordinary answer, so every name must be an offered tool.
    fenced = _FENCED.match(text.strip())
    whole = fenced[1].strip() if fenced else text.strip()
    calls = _in_json(whole)
    # The search by name is cheap and spares most replies the Python parser.
    if not calls and any(f"{name}(" in whole for name in names):
        calls = _in_python(whole)
    if calls and all(call.name in names for call in calls):
        return ParsedReply("", calls)
    return ParsedReply(text, [])


def settled(text: str, names: Sequence[str]) -> int:
    """Count the characters of a growing reply that can no longer become part of a call."""
    begun = text.lstrip()
    # JSON, a list or a code fence may turn out to be a call at the end.
    if begun.startswith(("{", "[", "`")):
        return 0
    # Both ways: the name may be half written, or the call already begun.
    if any(f"{name}(".startswith(begun) or begun.startswith(f"{name}(") for name in names):
        return 0
    # Everything from the mark on may be a call, and the blank space before it is dropped with it.
    opened = text.find(OPENING)
    if opened >= 0:
        return len(text[:opened].rstrip())
    # The longest end of the text that may begin the mark.
    partial_mark = next((k for k in range(len(OPENING), 0, -1) if text.endswith(OPENING[:k])), 0)
    return len(text[: len(text) - partial_mark].rstrip())


def _in_json(text: str) -> list[WrittenCall]:
    """Return the call, or list of calls, in a JSON text; empty if it is anything else."""
    try:
        value = json.loads(text)
        return [_json_call(each) for each in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError):
        return []


def _json_call(value: object) -> WrittenCall:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    # Llama 3 is taught to write `parameters`, most other models `arguments`.
    arguments = value.get("arguments", value.get("parameters"))
    return _checked(
        value.get("name"), json.loads(arguments) if isinstance(arguments, str) else arguments
    )


def _checked(name: object, arguments: object) -> WrittenCall:
    """Return a call if JSON and UTF-8 can represent it: no NaN, no set, no half surrogate."""
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call has a name and an object of arguments")
    # Raises for NaN, sets and half surrogates, none of which an API could send on.
    json.dumps([name, arguments], ensure_ascii=False, allow_nan=False).encode()
    return WrittenCall(name, arguments)


def _in_python(text: str) -> list[WrittenCall]:
    """Return the calls in `f(a=1)`, or in a list of such calls, with plain values by name."""
    try:
        with warnings.catch_warnings(action="ignore"):
            # invalid escapes in a model's text must not warn the user
            body = ast.parse(text, mode="eval").body
        written = body.elts if isinstance(body, ast.List) else [body]
        return [_python_call(each) for each in written]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return []


# ast.literal_eval and named arguments only: nothing a model writes is ever executed.
def _python_call(node: ast.expr) -> WrittenCall:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("not a call with arguments by name")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("** in a call")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return _checked(node.func.id, arguments)
