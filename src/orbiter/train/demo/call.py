"""Parse a model's reply as one Python call: `area(base=10, height=5)` → name and arguments.

The reply is only parsed, never run. Accepted is exactly what the decoder of the Berkeley
leaderboard accepts for its Python categories, including its peculiarities, so that verdicts agree:

- code fences and blank space around the call are dropped, and so are square brackets;
- positional arguments are ignored, since the accepted answers are kept by name;
- a bare name becomes a string (`unit=metres`), and so does a call without keywords;
- any sign or `not` before a literal negates it.

The one exception: names inside arithmetic, which the leaderboard would evaluate, are refused.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orbiter.train.errors import DataError

MAX_CHARS = 4000
"""Longer replies are refused unread: no request of the set needs a tenth of this length."""
MAX_POWER = 64
"""Largest exponent that is computed in `base ** exponent`."""

_ARITHMETIC: dict[type[ast.operator], Callable[[object, object], object]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the function's name and its named arguments."""

    name: str
    """Dotted if the reply is dotted: `math.gcd`."""
    arguments: Mapping[str | None, object]
    """Plain Python values by name; the key None stands for a `**mapping`."""


def parse_call(reply: str) -> Call:
    """Parse a reply as exactly one call.

    Raises:
        DataError: the reply is not Python, holds no call or more than one, or an argument is not a
            literal.
    """
    calls = parse_calls(reply)
    if len(calls) != 1:
        raise DataError(f"expected one call, got {len(calls)}: {reply[:60]!r}")
    return calls[0]


def parse_calls(reply: str) -> list[Call]:
    """Parse a reply as a list of calls; the brackets around it may be missing."""
    if len(reply) > MAX_CHARS:
        raise DataError(
            f"a reply of {len(reply)} characters is too long for a call (at most {MAX_CHARS})"
        )
    text = reply.strip("`\n ")
    # As the leaderboard does, each bracket by itself.
    text = text if text.startswith("[") else "[" + text
    text = text if text.endswith("]") else text + "]"
    try:
        with warnings.catch_warnings(action="ignore"):
            # an invalid escape such as '\d' in a model's string must not warn the user
            body = ast.parse(text, mode="eval").body
        return [_call(node) for node in _elements(body)]
    except (SyntaxError, ValueError, TypeError, ArithmeticError) as error:
        raise DataError(f"not a call: {reply[:60]!r} ({error})") from error
    except (RecursionError, MemoryError) as error:
        raise DataError(f"nested too deeply to be a call: {reply[:60]!r}") from error


def _elements(body: ast.expr) -> list[ast.expr]:
    if isinstance(body, ast.List):
        return body.elts
    raise DataError(f"a {type(body).__name__} is not a list of calls")


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise DataError(f"a {type(node).__name__} is not a call")
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    arguments = {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    return Call(".".join(reversed(parts)), arguments)


def _value(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=value):
            return "..." if value is ... else value
        case ast.UnaryOp(operand=ast.Constant(value=int() | float() | complex() as number)):
            # Whatever the operator is: `+5` and `not 5` become -5 on the leaderboard too.
            return -number
        case ast.BinOp():
            return _arithmetic(node)
        case ast.List() | ast.Tuple() | ast.Dict():
            return _container(node)
    return _source(node)


def _container(node: ast.List | ast.Tuple | ast.Dict) -> object:
    match node:
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
    return {_key(key): _value(one) for key, one in zip(node.keys, node.values, strict=True)}


def _source(node: ast.expr) -> object:
    """Return an expression that is not a literal as its source, as the leaderboard does."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            inner = _call(node)
            return {inner.name: inner.arguments}
        case ast.Subscript():
            return f"{ast.unparse(node.value)}[{ast.unparse(node.slice)}]"
    raise DataError(f"a {type(node).__name__} is not a value")


def _key(node: ast.expr | None) -> object:
    if node is None:
        raise DataError("a dict with ** in it is not a literal")
    key = _value(node)
    # A list as a key raises a TypeError, which `parse_calls` reports.
    hash(key)
    return key


def _arithmetic(node: ast.expr) -> object:
    """Evaluate literals joined by operators; numbers, and + between strings."""
    match node:
        case ast.Constant(value=bool() | int() | float() | complex() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub()):
            return operator.neg(_number(_arithmetic(node.operand)))
        case ast.UnaryOp(op=ast.UAdd()):
            return operator.pos(_number(_arithmetic(node.operand)))
        # Without the check for numbers: + also joins strings.
        case ast.BinOp(op=ast.Add()):
            left, right = _arithmetic(node.left), _arithmetic(node.right)
            return operator.add(left, right)
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
            left, right = _number(_arithmetic(node.left)), _number(_arithmetic(node.right))
            # 9**9**9 would take for ever.
            if isinstance(op, ast.Pow) and abs(right) > MAX_POWER:
                raise DataError(f"the exponent {right} is beyond {MAX_POWER}")
            return _ARITHMETIC[type(op)](left, right)
    raise DataError(f"a {type(node).__name__} is not allowed in arithmetic on literals")


def _number(value: object) -> int | float | complex:
    if isinstance(value, int | float | complex):
        return value
    raise DataError(f"{value!r} is not a number")
