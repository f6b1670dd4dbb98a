"""Reads spans from a file of OTLP JSON: one export request, one per line, or an array of them.

The collector's file exporter writes one request per line. A document of any length is read piece
by piece. Not supported: metrics and logs, which OTLP stores in separate files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar, cast

import msgspec

from orbiter.train.errors import DataError
from orbiter.train.json_files.source import BOM, Source
from orbiter.train.json_files.walk import CHUNK, FOREIGN, BrokenDocumentError, Walk, decoded
from orbiter.train.tracing.otlp import Request, Resource, Scope, WireSpan

T = TypeVar("T")

LINE = 8 << 20
"""A line longer than this many bytes is read piece by piece."""


class Origin(NamedTuple):
    """The service and instrumentation that a span comes from.

    In a document that is read piece by piece they are missing if they follow the spans, but no
    known writer puts them there.
    """

    service: str | None = None
    instrumentation: str | None = None


class Found(NamedTuple):
    """A span that was read from a file."""

    span: WireSpan
    origin: Origin
    line: int


def read_spans(source: Source) -> Iterator[Found]:
    """Yield the spans of a file, holding at most one line or one piece of a document in memory."""
    with source.open() as opened:
        file = io.BufferedReader(cast("io.RawIOBase", opened), CHUNK)
        first = file.readline(CHUNK)
        rest = first.removeprefix(BOM)
        line, offset = 1, len(first) - len(rest)
        while rest.isspace():
            line, offset, rest = line + 1, offset + len(rest), file.readline(CHUNK)
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


def _read_line(source: Source, line: bytes, number: int, offset: int) -> Iterator[Found]:
    if line.isspace():
        return
    try:
        request = _REQUEST.decode(line)
    except FOREIGN:
        walk = Walk(io.BytesIO(), line, line=number, offset=offset)
        yield from _read_documents(source, walk)
        return
    for process in request.resource_spans or ():
        service = _service(process.resource)
        for scope in process.scope_spans or ():
            origin = Origin(service, scope.scope.name if scope.scope else None)
            for span in scope.spans or ():
                yield Found(span, origin, number)


def _read_documents(source: Source, walk: Walk) -> Iterator[Found]:
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


def _read_request(source: Source, walk: Walk) -> Iterator[Found]:
    for key in walk.members():
        if key == "resourceSpans" and walk.peek() == b"[":
            for _ in walk.elements():
                yield from _read_process(source, walk)
        else:
            walk.skip()


def _read_process(source: Source, walk: Walk) -> Iterator[Found]:
    service = None
    for key in walk.members():
        if key == "resource":
            service = _service(_taken(source, walk, walk.take, _RESOURCE))
        elif key == "scopeSpans" and walk.peek() == b"[":
            for _ in walk.elements():
                yield from _read_scope(source, walk, service)
        else:
            walk.skip()


def _read_scope(source: Source, walk: Walk, service: str | None) -> Iterator[Found]:
    origin = Origin(service)
    for key in walk.members():
        if key == "scope":
            scope = _taken(source, walk, walk.take, _SCOPE)
            origin = Origin(service, scope.name if scope else None)
        elif key == "spans" and walk.peek() == b"[":
            for _ in walk.elements():
                span = _taken(source, walk, walk.take_like, _SPAN)
                if span is not None:
                    yield Found(span, origin, walk.line)
        else:
            walk.skip()


def _taken(
    source: Source,
    walk: Walk,
    take: Callable[[msgspec.json.Decoder[T | None]], T | None],
    decoder: msgspec.json.Decoder[T | None],
) -> T | None:
    """Return the value that begins here; refuse it and return None if it has the wrong form."""
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
_REQUEST = msgspec.json.Decoder(Request)
_RESOURCE = msgspec.json.Decoder(Resource | None)
_SCOPE = msgspec.json.Decoder(Scope | None)
_SPAN = msgspec.json.Decoder(WireSpan | None)
