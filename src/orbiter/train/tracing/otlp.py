"""Reads spans and log records from a file of OTLP JSON.

A file is one export request, one per line, or an array of them. The collector's file exporter
writes one request per line. A document of any length is read piece by piece. Log records hold the
events of spans (some tracers put the messages there); they may be anywhere in the file. Not
supported: metrics. Not here: the meaning of an attribute (`dialects.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from orbiter.train.errors import DataError
from orbiter.train.json_files.source import BOM, Source
from orbiter.train.json_files.walk import CHUNK, FOREIGN, BrokenDocumentError, Walk, decoded

T = TypeVar("T")

LINE = 8 << 20
"""A line longer than this many bytes is read piece by piece."""


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


class WireLog(msgspec.Struct, rename="camel", gc=False):
    """A log record, which holds an event of a span."""

    trace_id: str = ""
    span_id: str = ""
    event_name: str = ""
    attributes: list[KeyValue] | None = None
    body: AnyValue | None = None


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
    """Decoded by `span.AttributeReader`."""
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


class ScopeLogs(msgspec.Struct, rename="camel", gc=False):
    """The log records of one instrumentation."""

    log_records: list[WireLog] | None = None


class ResourceLogs(msgspec.Struct, rename="camel", gc=False):
    """The log records of one process."""

    scope_logs: list[ScopeLogs] | None = None


class ExportRequest(msgspec.Struct, rename="camel", gc=False):
    """The content of one export."""

    resource_spans: list[ResourceSpans] | None = None
    resource_logs: list[ResourceLogs] | None = None


def plain(value: AnyValue | None) -> Any:  # noqa: ANN401 - any JSON
    """Return the plain JSON value of an attribute.

    Raises:
        DataError: an integer is malformed.
    """
    # Checked first, since most attributes are texts.
    if value is None or value.string_value is not None:
        return value and value.string_value
    # OTLP JSON writes 64-bit integers as text, so this is an int or a text.
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


class Origin(NamedTuple):
    """The service and instrumentation that a span comes from.

    In a document that is read piece by piece they are missing if they follow the spans, but no
    known writer puts them there.
    """

    service: str | None = None
    instrumentation: str | None = None


class FoundSpan(NamedTuple):
    """A span that was read from a file."""

    span: WireSpan
    origin: Origin
    line: int


class FoundLog(NamedTuple):
    """A log record that was read from a file."""

    log: WireLog
    line: int


def read_spans(source: Source) -> Iterator[FoundSpan | FoundLog]:
    """Yield the spans and log records of a file.

    At most one line, or one piece of a document, is in memory.
    """
    with source.open() as opened:
        # The source may be a decompressor or a pipe, so it is buffered here.
        file = io.BufferedReader(cast("io.RawIOBase", opened), CHUNK)
        first = file.readline(CHUNK)
        # Some tools write a byte order mark at the beginning.
        rest = first.removeprefix(BOM)
        line, offset = 1, len(first) - len(rest)
        # Blank lines before the first document.
        while rest.isspace():
            line, offset, rest = line + 1, offset + len(rest), file.readline(CHUNK)
        # The first line tells the two layouts apart: a whole document on one line, or a part of
        # one.
        by_line = _is_whole(rest)
        while by_line and rest.endswith(b"\n"):
            yield from _read_line(source, rest, line, offset)
            line, offset, rest = line + 1, offset + len(rest), file.readline(LINE)
        # The rest is a whole document, or a line without an end.
        yield from _read_documents(source, Walk(file, rest, line=line, offset=offset))


def _is_whole(line: bytes) -> bool:
    try:
        decoded(_RAW, line)
    except DataError:
        return False
    return True


def _read_line(
    source: Source, line: bytes, number: int, offset: int
) -> Iterator[FoundSpan | FoundLog]:
    if line.isspace():
        return
    try:
        request = _REQUEST.decode(line)
    # One bad span would lose the whole line, so it is read again piece by piece.
    except FOREIGN:
        walk = Walk(io.BytesIO(), line, line=number, offset=offset)
        yield from _read_documents(source, walk)
        return
    for process in request.resource_spans or ():
        service = _service(process.resource)
        for scope in process.scope_spans or ():
            origin = Origin(service, scope.scope.name if scope.scope else None)
            for span in scope.spans or ():
                yield FoundSpan(span, origin, number)
    yield from _logs_in(request.resource_logs, number)


def _logs_in(processes: list[ResourceLogs] | None, line: int) -> Iterator[FoundLog]:
    for process in processes or ():
        for scope in process.scope_logs or ():
            yield from (FoundLog(log, line) for log in scope.log_records or ())


def _read_documents(source: Source, walk: Walk) -> Iterator[FoundSpan | FoundLog]:
    """Read one document after another, up to the first one that is malformed."""
    try:
        while walk.peek():
            if walk.peek() == b"[":
                for _ in walk.elements():
                    yield from _read_request(source, walk)
            else:
                yield from _read_request(source, walk)
    except BrokenDocumentError as error:
        source.refuse(walk.line, f"{error} (byte {walk.byte}): the rest is not read", error)


def _read_request(source: Source, walk: Walk) -> Iterator[FoundSpan | FoundLog]:
    for key in walk.members():
        if key == "resourceSpans":
            for _ in _elements(source, walk, key):
                yield from _read_process(source, walk)
        elif key == "resourceLogs" and walk.peek() == b"[":
            for _ in walk.elements():
                logs = _taken(source, walk, walk.take, _LOGS)
                yield from _logs_in([logs] if logs is not None else None, walk.line)
        else:
            walk.skip()


def _read_process(source: Source, walk: Walk) -> Iterator[FoundSpan]:
    service = None
    for key in walk.members():
        if key == "resource":
            service = _service(_taken(source, walk, walk.take, _RESOURCE))
        elif key == "scopeSpans":
            # The position moves with every element, so nothing is held but the current one.
            for _ in _elements(source, walk, key):
                yield from _read_scope(source, walk, service)
        else:
            walk.skip()


def _read_scope(source: Source, walk: Walk, service: str | None) -> Iterator[FoundSpan]:
    origin = Origin(service)
    for key in walk.members():
        if key == "scope":
            scope = _taken(source, walk, walk.take, _SCOPE)
            origin = Origin(service, scope.name if scope else None)
        elif key == "spans":
            for _ in _elements(source, walk, key):
                span = _taken(source, walk, walk.take_like, _SPAN)
                if span is not None:
                    yield FoundSpan(span, origin, walk.line)
        else:
            walk.skip()


def _elements(source: Source, walk: Walk, key: str) -> Iterator[None]:
    """Advance to each element of a list in turn; refuse a value that is neither a list nor null."""
    if walk.peek() == b"[":
        yield from walk.elements()
        return
    # Looked at before the value is skipped, which moves the position.
    line, is_null = walk.line, walk.peek() == b"n"
    walk.skip()
    if not is_null:
        source.refuse(line, f"{key} must be a list")


def _taken(
    source: Source,
    walk: Walk,
    take: Callable[[msgspec.json.Decoder[T | None]], T | None],
    decoder: msgspec.json.Decoder[T | None],
) -> T | None:
    """Return the next value; refuse it and return None if it has the wrong form."""
    line, byte = walk.line, walk.byte
    try:
        return take(decoder)
    except BrokenDocumentError:
        raise
    except DataError as error:
        source.refuse(line, f"{error} (in the value that begins at byte {byte})", error)
        return None


def _service(resource: Resource | None) -> str | None:
    for pair in (resource.attributes if resource else None) or ():
        if pair.key == "service.name" and pair.value is not None:
            return pair.value.string_value
    return None


_RAW = msgspec.json.Decoder(msgspec.Raw)
_REQUEST = msgspec.json.Decoder(ExportRequest)
_RESOURCE = msgspec.json.Decoder(Resource | None)
_SCOPE = msgspec.json.Decoder(Scope | None)
_SPAN = msgspec.json.Decoder(WireSpan | None)
_LOGS = msgspec.json.Decoder(ResourceLogs | None)
