"""Undo HTTP content encodings: gzip and deflate always, brotli and zstd if installed."""

from __future__ import annotations

import importlib
import importlib.util
import zlib
from collections.abc import Callable
from typing import Any

from orbiter.train.chat.reply import Unreadable

_BROTLI = next((name for name in ("brotli", "brotlicffi") if importlib.util.find_spec(name)), None)
_ZSTD = "zstandard" if importlib.util.find_spec("zstandard") else None
READABLE = tuple(
    filter(None, ("gzip", "deflate", "br" if _BROTLI else "", "zstd" if _ZSTD else "", "identity"))
)
"""The encodings that can be decoded in this installation."""

Decode = Callable[[bytes], bytes]
"""Takes the next bytes of a body and returns the newly decoded ones."""


def decoder(encoding: str) -> Decode | None:
    """Return an incremental decoder for a content encoding; None if there is nothing to decode.

    For an encoding that is not installed, the decoder raises `Unreadable`.
    """
    names = [name.strip().lower() for name in encoding.split(",")]
    # Encodings are listed in the order in which they were applied, so they are undone from the
    # end.
    steps = [_step(name) for name in reversed(names) if name not in {"", "identity"}]
    if not steps:
        return None

    def decode(chunk: bytes) -> bytes:
        for step in steps:
            chunk = step(chunk)
        return chunk

    return decode


def decoded(body: bytes, encoding: str) -> bytes:
    """Decode a whole body.

    Raises:
        Unreadable: the body is damaged, or its encoding is not installed.
    """
    decode = decoder(encoding)
    return body if decode is None else decode(body)


def narrowed(accepted: bytes) -> bytes:
    """Drop the encodings that cannot be decoded here from an Accept-Encoding header."""
    kept = [
        choice
        for choice in accepted.decode("latin-1").split(",")
        if choice.split(";")[0].strip().lower() in READABLE
    ]
    # An empty header would allow every encoding.
    return ",".join(kept).strip().encode("latin-1") or b"identity"


def _step(name: str) -> Decode:
    if name in {"gzip", "x-gzip"}:
        return _Zlib(16 + zlib.MAX_WBITS)
    if name == "deflate":
        return _Zlib(0)
    if name == "br" and _BROTLI:
        module: Any = importlib.import_module(_BROTLI)
        brotli = module.Decompressor()
        feed = getattr(brotli, "process", None) or brotli.decompress
        return _guarded(name, feed, module.error)
    if name == "zstd" and _ZSTD:
        zstandard: Any = importlib.import_module(_ZSTD)
        inflate = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress
        return _guarded(name, inflate, zstandard.ZstdError)

    def unreadable(_chunk: bytes) -> bytes:
        raise Unreadable(
            f"cannot decode content-encoding {name!r}; readable: {', '.join(READABLE)}"
        )

    return unreadable


def _guarded(name: str, decode: Decode, failure: type[Exception]) -> Decode:
    def guarded(chunk: bytes) -> bytes:
        try:
            return decode(chunk)
        except failure as error:
            raise Unreadable(f"the body is not valid {name}: {error}") from error

    return guarded


class _Zlib:
    """Decodes gzip with any number of members, or deflate with or without zlib's header."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._inflate: Any = None

    def __call__(self, chunk: bytes) -> bytes:
        out = bytearray()
        while chunk:
            if self._inflate is None:
                # A zlib header has 8 in its low four bits; some servers send raw deflate instead.
                bits = self._bits or (zlib.MAX_WBITS if chunk[0] & 0x0F == 8 else -zlib.MAX_WBITS)
                self._inflate = zlib.decompressobj(bits)
            try:
                out += self._inflate.decompress(chunk)
            except zlib.error as error:
                raise Unreadable(f"the body is neither gzip nor deflate: {error}") from error
            # gzip allows several members one after the other.
            chunk = self._inflate.unused_data
            if self._inflate.eof:
                self._inflate = None
                if not self._bits:
                    break
        return bytes(out)
