"""Write TOML, which the standard library can only read; `tomllib` reads the same values back.

Dates and comments are not supported; a run's settings have neither.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from orbiter.train.errors import DataError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED = {chr(n): f"\\u{n:04x}" for n in (0x7F, *range(0x80, 0xA0))}


def dump(values: Mapping[str, object]) -> str:
    """Write settings as TOML: plain entries first, then a table for each mapping of mappings."""
    # First, since TOML has no way back from a table to the top level.
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    tables = {k: v for k, v in values.items() if isinstance(v, Mapping)}
    lines = [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{_key(name)}]"]
        lines += [f"{_key(inner)} = {_value(value)}" for inner, value in table.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: object) -> str:
    # Before int, of which bool is a kind in Python.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else str(float(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())}}}"
    raise DataError(f"TOML has no way to write {value!r}")


def _text(text: str) -> str:
    written = json.dumps(text, ensure_ascii=False)
    return "".join(_ESCAPED.get(character, character) for character in written)
