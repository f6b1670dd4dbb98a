"""Write verdicts.json.gz: what the leaderboard's own checker says about right and wrong calls.

Run it with the project's interpreter: `python tests/demo/make_verdicts.py`. It unpacks the wheel
into a temporary folder and calls the leaderboard's decoder and checker as its own runner does. What
these modules import and do not need here (handlers of hosted models, parsers for Java) is replaced
by empty modules. Each row of the table is [request id, reply, verdict]; replies on which the
leaderboard's checker itself raises have no verdict and are left out (their number is printed).
"""

from __future__ import annotations

import gzip
import importlib
import json
import random
import sys
import tempfile
import types
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orbiter.train.demo.agent import mistaken_call, right_arguments, write_call
from orbiter.train.demo.requests import REQUESTS, ToolRequest, fetch_wheel, load_requests
from orbiter.train.seeding import sub_random

TABLE = Path(__file__).with_name("verdicts.json.gz")
ROWS = 6000


def replies(request: ToolRequest, generator: random.Random) -> Iterator[str]:
    """Yield right calls, calls that are nearly right, and plain nonsense."""
    name, arguments = request.function.name, right_arguments(request)
    call = write_call(name, arguments)
    yield from wrapped(call, name, arguments)
    yield from (mistaken_call(request, generator) for _ in range(3))
    for key, values in request.accepted.items():
        for value in values:
            yield write_call(name, {**arguments, key: value})
        for text in spoilt(arguments.get(key, values[0])):
            rest = ", ".join(f"{k}={v!r}" for k, v in arguments.items() if k != key)
            yield f"{name}({rest}{', ' if rest else ''}{key}={text})"
        yield write_call(name, {k: v for k, v in arguments.items() if k != key})


def wrapped(call: str, name: str, arguments: dict[str, object]) -> Iterator[str]:
    """The whole call in other clothes, or with something beside it."""
    yield from (call, f"[{call}]", f"```\n{call}\n```", f"```python\n{call}\n```", f"  {call}\n")
    yield from (f"'{call}'", f"({call})", f"({call},)", f"{{{call}}}", f"[{call}", f"{call}]")
    yield from (f"{call}, {call}", f"{call}; {call}", f"The call is {call}", f"{call}.", call[:-1])
    yield from (f"print({call})", f"x = {call}", f"not {call}", f"{call}()", f"lambda: {call}", "")
    backwards = dict(reversed(arguments.items()))
    yield write_call(name, backwards)
    yield write_call(name.replace(".", "_"), arguments)
    yield write_call(name.rpartition(".")[2], arguments)
    yield write_call(name.upper(), arguments)
    yield write_call("a.b." + name, arguments)
    yield f"{name}({', '.join(map(repr, arguments.values()))})"
    yield f"{name}(**{arguments!r})"
    yield f"{name}(1, {call.partition('(')[2]}"
    yield f"{name}()"
    yield name
    yield json.dumps({"name": name, "arguments": arguments})
    yield write_call(name, {**arguments, "unexpected": 1})


def spoilt(value: object) -> Iterator[str]:
    """The source of values that are near `value`, or equal to it in some reading."""
    yield from ("None", "True", "False", "''", "[]", "{}", "()", "...", "name", "3", "2.5", "f(1)")
    yield from ("f(a=1)", "a.b", "a[0]", "{1}", "f'x'", "b'x'", "1j", "lambda: 1", "-x", "x + 1")
    yield from (f"[{value!r}]", f"({value!r},)", f"({value!r})", repr(str(value)), repr([[value]]))
    match value:
        case bool():
            yield from (repr(not value), repr(int(value)), repr(str(value).lower()))
        case int() | float():
            yield from near_number(value)
        case str():
            yield from near_text(value)
        case list():
            yield from near_list(value)
        case dict():
            yield repr(dict(list(value.items())[1:]))
            yield repr({**value, "more": 1})
            yield repr({key.upper(): one for key, one in value.items()})
            others: tuple[object, ...] = ("", 0, [], "x")
            yield from (repr({**value, key: one}) for key in value for one in others)


def near_number(value: float) -> Iterator[str]:
    yield from (repr(value + 1), repr(value - 1), repr(-value), f"+{abs(value)}", f"-{abs(value)}")
    yield from (
        repr(float(value)),
        repr(int(value)),
        f"{value} + 0",
        f"{value} * 1",
        f"2 * {value}",
    )
    yield from (f"{value} / 1", f"{value} // 1", f"{value} ** 1", f"-(-{value})", f"not {value}")
    yield from (f"{value} / 0", f"~{int(value)}", f"{value * 100} / 100", f"({value}, {value})")


def near_text(value: str) -> Iterator[str]:
    yield from map(repr, (value.upper(), value.title(), value.replace(" ", ""), value + "."))
    yield from map(repr, (value.replace(" ", "_"), value.replace(",", ""), f" {value} ", value[1:]))
    yield from map(
        repr, (value[:-1], value + "!", value + "s", value[::-1], f"-{value}*", f'"{value}"')
    )
    yield from map(
        repr, (value.replace("'", '"'), value.split(), value.partition(" ")[0], "-", " ")
    )
    yield f"{value[:2]!r} + {value[2:]!r}"
    yield f"'\\d' {value!r}"


def near_list(value: list[Any]) -> Iterator[str]:
    yield from map(
        repr, (tuple(value), value[::-1], value[1:], value + value[:1], [value], value[0])
    )
    yield repr([str(item) for item in value])
    yield repr([str(item).upper() for item in value])
    yield repr([float(item) if isinstance(item, int) else item for item in value])
    yield repr([item + 1 if isinstance(item, int | float) else item for item in value])
    yield repr([None for _ in value])
    yield repr([{**item, "more": 1} if isinstance(item, dict) else {"a": item} for item in value])


class Empty(types.ModuleType):
    """A module of which every name is an empty class: for imports that are not needed."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_, **__: None, "__call__": lambda *_: None})


def leaderboard(folder: Path) -> Callable[[ToolRequest, str, dict[str, Any]], bool]:
    """Return the leaderboard's verdict on a reply, straight from the unpacked wheel."""
    sys.path.insert(0, str(folder))
    package = "bfcl_eval.model_handler.parser"
    empty = ["tenacity", "filelock", "tree_sitter", "bfcl_eval.constants.model_config"]
    empty += [f"{package}.{language}_parser" for language in ("java", "js", "json", "xml")]
    converters = "bfcl_eval.eval_checker.ast_eval.type_convertor"
    empty += [f"{converters}.{language}_type_converter" for language in ("java", "js")]
    for name in empty:
        sys.modules[name] = Empty(name)
    plain = types.SimpleNamespace(underscore_to_dot=False)
    sys.modules["bfcl_eval.constants.model_config"].MODEL_CONFIG_MAPPING = {"model": plain}  # type: ignore[attr-defined] # the one name that is read
    decode = importlib.import_module("bfcl_eval.model_handler.utils").default_decode_ast_prompting
    is_format = importlib.import_module("bfcl_eval.utils").is_function_calling_format_output
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
    python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON

    def verdict(request: ToolRequest, reply: str, schema: dict[str, Any]) -> bool:
        try:
            calls = decode(reply)
        except Exception:  # as the leaderboard's runner does: undecodable is wrong
            return False
        accepted = [{request.function.name: request.accepted}]
        judged = is_format(calls) and checker(schema, calls, accepted, python, "simple", "model")
        return bool(judged and judged["valid"])

    return verdict


def judge(wheel: Path) -> dict[tuple[str, str], bool]:
    """Put every reply to every request before the leaderboard's checker."""
    generator = sub_random(0, "verdicts")
    rows: dict[tuple[str, str], bool] = {}
    raised: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        verdict = leaderboard(Path(folder))
        lines = archive.read(REQUESTS.format("simple_python")).splitlines()
        for request, line in zip(load_requests(wheel), lines, strict=True):
            for reply in replies(request, generator):
                try:
                    rows[request.id, reply] = verdict(request, reply, json.loads(line)["function"])
                except Exception as error:  # a foreign checker's crash is no verdict
                    raised[type(error).__name__] += 1
    sys.stdout.write(f"{len(rows)} replies judged, {sum(rows.values())} right; raised: {raised}\n")
    return rows


def main() -> None:
    rows = judge(fetch_wheel())
    generator = sub_random(0, "rows")
    right = generator.sample([key for key, valid in rows.items() if valid], ROWS // 2)
    wrong = generator.sample([key for key, valid in rows.items() if not valid], ROWS // 2)
    table = [[*key, rows[key]] for key in sorted(right + wrong)]
    with gzip.GzipFile(TABLE, "wb", mtime=0) as file:
        file.write(json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode())


if __name__ == "__main__":
    main()
