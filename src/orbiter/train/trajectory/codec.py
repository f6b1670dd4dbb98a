"""Encodes an item as one line of JSON and decodes it; errors name the field and the problem."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from orbiter.train.errors import DataError, did_you_mean
from orbiter.train.json_files import fields
from orbiter.train.trajectory.item import NAMES, TrajectoryItem, Values, from_values, values_of


class Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The fields of an item as JSON types, in the order of `item.NAMES`."""

    state: str
    action: str
    reward: int | float | None
    metadata: dict[str, Any] | None = None
    task_id: str | None = None
    episode_id: str | None = None
    step: int | None = None
    agent: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    done: bool | None = None
    timestamp: int | float | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None


def encode_item(item: TrajectoryItem) -> bytes:
    """Return an item as one line of JSON, without the newline."""
    return fields.encode(Line(*values_of(item)))


def decode_item(line: bytes, *, extra_to_metadata: bool = False) -> TrajectoryItem:
    """Return the item in a line of JSON.

    Raises:
        DataError: the message names the field, what was expected and the value found, but not the
            file or line.
    """
    try:
        decoded = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # The strict decoder is several times faster, so the slow way is taken only for the lines
        # that need it.
        if extra_to_metadata and "unknown field" in str(error):
            decoded = _with_extra_in_metadata(_as_object(line))
        else:
            raise _explained(line, error) from error
    else:
        # Only suspicious lines pay for the slow decoder, which is the one that sees repeated keys.
        if _may_repeat_a_key(line, decoded):
            _as_object(line)
    if decoded.logprobs is not None and len(decoded.logprobs) != len(decoded.token_ids or ()):
        raise DataError("field 'logprobs': expected one number for each of token_ids")
    return from_values(values_in(decoded))


def values_in(line: Line) -> Values:
    """Return the fields of a decoded line as an item stores them."""
    # Some languages write 1.0 as 1, and items hold floats.
    if type(line.reward) is int:
        line.reward = fields.number("reward", line.reward)
    if type(line.timestamp) is int:
        line.timestamp = fields.number("timestamp", line.timestamp)
    if line.metadata is None:
        line.metadata = {}
    return msgspec.structs.astuple(line)


def _may_repeat_a_key(line: bytes, decoded: Line) -> bool:
    """Return whether a key may occur twice, so that the second one hides the first.

    Decoding drops repeated keys, so encoding the result gives fewer colons than the line has. Only
    a colon written as an escape can hide that, so a line with one counts as suspicious too.
    """
    colons = fields.encode(decoded).count(b":")
    return line.count(b":") != colons or (b"\\" in line and b"\\u003" in line)


def _as_object(line: bytes) -> dict[str, Any]:
    """Read a line with the slow decoder, refusing a key that occurs twice in one object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"field {twice!r}: expected once, got {keys.count(twice)} times")
        return result

    result: dict[str, Any] = json.loads(line, object_pairs_hook=unique)
    return result


def _with_extra_in_metadata(given: dict[str, Any]) -> Line:
    extra = {key: given.pop(key) for key in list(given) if key not in NAMES}
    metadata = given.get("metadata") or {}
    if isinstance(metadata, Mapping):
        if both := sorted(extra.keys() & metadata.keys()):
            raise DataError(f"field {both[0]!r}: appears both in the item and in its metadata")
        given["metadata"] = {**metadata, **extra}
    try:
        return msgspec.convert(given, Line)
    except msgspec.ValidationError as error:
        raise _explained(b"", error) from error


def _explained(line: bytes, error: Exception) -> DataError:
    # Checked first: it is no error of msgspec and has no position.
    if isinstance(error, RecursionError):
        return DataError("nested too deep to be an item")
    if isinstance(error, UnicodeDecodeError):
        return _not_unicode(line)
    if isinstance(error, msgspec.ValidationError):
        return _wrong_field(str(error))
    return _malformed(line, str(error))


def _wrong_field(message: str) -> DataError:
    if unknown := re.search(r"unknown field `(.*?)`", message):
        name = unknown[1]
        return DataError(
            f"field {name!r}: no such field{did_you_mean(name, NAMES)} "
            '(extra="metadata" keeps unknown fields in metadata)'
        )
    if missing := re.search(r"missing required field `(.*?)`", message):
        hint = "; write null if it is not known yet" if missing[1] == "reward" else ""
        return DataError(f"field {missing[1]!r}: missing{hint}")
    what, _, where = message.replace("`", "").partition(" - at ")
    what = what[:1].lower() + what[1:]
    return DataError(f"field {where.removeprefix('$.')!r}: {what}" if where else what)


def _not_unicode(line: bytes) -> DataError:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        field = _field_before(line[: error.start])
        return DataError(f"{field}byte 0x{line[error.start]:02x} is not UTF-8")
    return DataError("a text in it is not UTF-8")


def _malformed(line: bytes, message: str) -> DataError:
    # msgspec gives no position for a text that ends early.
    if "truncated" in message:
        return DataError(f"{_field_before(line)}ends in the middle of an item")
    # The only place where msgspec says where the mistake is.
    match = re.search(r"\(byte (\d+)\)", message)
    at = int(match[1]) if match else len(line)
    field = _field_before(line[:at])
    if re.match(rb"-?(NaN|Inf)", line[at:]):
        return DataError(f"{field}expected a finite number, got {_excerpt(line, at)}")
    what = message.removeprefix("JSON is malformed: ").partition(" (byte")[0]
    return DataError(f"{field}not JSON at byte {at + 1}, {_excerpt(line, at)}: {what}")


def _excerpt(line: bytes, at: int) -> str:
    return repr(line[at : at + 20].decode("utf-8", "replace"))


def _field_before(text: bytes) -> str:
    names = re.findall(rb'"([a-z_]+)"\s*:', text)
    # The last known key before the mistake; a text may contain something that looks like a key.
    known = [name.decode() for name in names if name.decode() in NAMES]
    return f"field {known[-1]!r}: " if known else ""


_DECODER = msgspec.json.Decoder(Line)
