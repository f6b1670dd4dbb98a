"""The parts of OTLP's JSON that are needed here: spans, their attributes and events.

Not here: reading a file (`stream.py`) and the meaning of an attribute (`dialects.py`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from orbiter.train.errors import DataError


class AnyValue(msgspec.Struct, rename="camel", gc=False):
    """One attribute value; the field that is set gives its type."""

    string_value: str | None = None
    int_value: int | str | None = None
    double_value: int | float | str | None = None
    bool_value: bool | None = None
    array_value: Values | None = None
    kvlist_value: KeyValues | None = None
    bytes_value: str | None = None


class Values(msgspec.Struct, gc=False):
    """An array of values."""

    values: list[AnyValue] | None = None


class KeyValue(msgspec.Struct, gc=False):
    """One attribute."""

    key: str
    value: AnyValue | None = None


class KeyValues(msgspec.Struct, gc=False):
    """A map of values."""

    values: list[KeyValue] | None = None


class WireEvent(msgspec.Struct, rename="camel", gc=False):
    """An event within a span."""

    name: str = ""
    attributes: list[KeyValue] | None = None


class Status(msgspec.Struct, gc=False):
    """The status with which a span ended."""

    code: int | str | None = None
    message: str | None = None


class WireSpan(msgspec.Struct, rename="camel", gc=False):
    """The fields of a span that are needed here."""

    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str | None = None
    name: str = ""
    start_time_unix_nano: int | str | None = None
    end_time_unix_nano: int | str | None = None
    attributes: msgspec.Raw = msgspec.Raw(b"null")
    """Decoded in `attributes.py`."""
    dropped_attributes_count: int | None = None
    events: list[WireEvent] | None = None
    status: Status | None = None


class AttributesOnly(msgspec.Struct, gc=False):
    """A span reduced to its attributes."""

    attributes: list[KeyValue] | None = None


class Scope(msgspec.Struct, gc=False):
    """The instrumentation that wrote the spans."""

    name: str | None = None
    version: str | None = None


class Resource(msgspec.Struct, gc=False):
    """The process that wrote the spans."""

    attributes: list[KeyValue] | None = None


class ScopeSpans(msgspec.Struct, rename="camel", gc=False):
    """The spans of one instrumentation."""

    scope: Scope | None = None
    spans: list[WireSpan] | None = None


class ResourceSpans(msgspec.Struct, rename="camel", gc=False):
    """The spans of one process."""

    resource: Resource | None = None
    scope_spans: list[ScopeSpans] | None = None


class Request(msgspec.Struct, rename="camel", gc=False):
    """The content of one export."""

    resource_spans: list[ResourceSpans] | None = None


def plain(value: AnyValue | None) -> Any:  # noqa: ANN401 - any JSON
    """Return the plain JSON value of an attribute.

    Raises:
        DataError: an integer is malformed.
    """
    if value is None or value.string_value is not None:
        return value and value.string_value
    if value.int_value is not None:
        return _whole(value.int_value)
    if value.array_value is not None:
        return [plain(inner) for inner in value.array_value.values or ()]
    if value.kvlist_value is not None:
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values or ()}
    scalars = (value.double_value, value.bool_value, value.bytes_value)
    return next((scalar for scalar in scalars if scalar is not None), None)


def nanoseconds(value: int | str | None) -> int:
    """Return a time in nanoseconds since 1970; 0 if it is missing.

    Raises:
        DataError: it is not a 64-bit number.
    """
    time = _whole(value) if value else 0
    if not 0 <= time < 1 << 64:
        raise DataError(f"expected a time in nanoseconds since 1970, got {str(value)[:40]}")
    return time


def _whole(value: int | str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise DataError(f"expected an integer, got {value[:40]!r}") from error  # type: ignore[index]  # an int is one
