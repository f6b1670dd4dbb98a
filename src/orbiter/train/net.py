"""Open and guard the HTTP servers of this package: address, Host, Origin and token in one place.

A server on loopback needs no token, so a web page in the user's browser must not be able to use it:
by a foreign name that resolves to 127.0.0.1 (DNS rebinding: the Host header is foreign), or by a
plain cross-site request (the Origin header is foreign). Whatever cannot be understood is refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

from orbiter.train.errors import ConfigError

Headers = Iterable[tuple[bytes, bytes]]
"""Raw header names and values, as ASGI passes them."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ORIGIN = re.compile(r"https?://(.+)")


class Refused(NamedTuple):
    """Why a request is not served."""

    status: int
    """The HTTP status to answer with."""
    message: str


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host, given as a name or as an address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    # ::ffff:127.0.0.1 reaches loopback too, but older versions of Python do not count it as such.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_port(port: object) -> int:
    """Return the port if there can be such a port.

    Raises:
        ConfigError: it is no whole number from 0 to 65535.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError(f"port must be a whole number from 0 to 65535, got {port!r}")
    return port


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; port 0 takes a free one.

    Open it before anything slow happens, so that a mistake shows at once. Close it by `with`.

    Raises:
        ConfigError: the port does not exist or is in use, or the host is not on this machine.
    """
    check_port(port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name != "nt":  # on Windows it would let two servers share one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(
            f"cannot listen on {host}:{port} ({reason}); choose another port, or 0 for a free one"
        ) from error
    return listener


def http_address(host: str, port: int) -> str:
    """Return the address of a server as clients write it, without a trailing slash."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def refuse_web_pages(headers: Headers) -> Refused | None:
    """Return why a request without a token may not come in, or None if it may.

    Served are requests whose Host is this machine's loopback name or address, and whose Origin, if
    a browser sent one, is a page of this machine too.
    """
    hosts, origins, sites = _values(headers, b"host", b"origin", b"sec-fetch-site")
    # Two Host headers mean that a proxy and the server may read different ones.
    if len(hosts) != 1 or not _is_own(hosts[0]):
        shown = ", ".join(map(repr, hosts)) or "missing"
        return Refused(
            403,
            f"the Host header ({shown}) does not name this machine: use 127.0.0.1 or localhost, "
            "or start the server with a token",
        )
    for origin in origins:
        page = _ORIGIN.fullmatch(origin)
        if page is None or not _is_own(page[1]):
            return Refused(403, f"web pages of {origin!r} may not use this server")
    # Browsers set this header themselves; a page's script cannot change it.
    if any(site.lower() == "cross-site" for site in sites):
        return Refused(403, "web pages of other sites may not use this server")
    return None


def same_secret(given: str | bytes, secret: str | bytes) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    # compare_digest refuses text that is not ASCII, so bytes are compared.
    first = given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given
    second = secret.encode("utf-8", "surrogateescape") if isinstance(secret, str) else secret
    return hmac.compare_digest(first, second)


def bearer_token(headers: Headers) -> bytes:
    """Return the token of the Authorization header, or nothing unless there is exactly one."""
    pairs = [value for name, value in headers if name.lower() == b"authorization"]
    # With several headers it is unclear which one counts, so none does.
    scheme, _, token = pairs[0].partition(b" ") if len(pairs) == 1 else (b"", b"", b"")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _is_own(host: str) -> bool:
    """Return whether a Host header (or an origin after its scheme) names this machine."""
    parts = _HOST.fullmatch(host)
    return parts is not None and int(parts[2] or 0) <= 65535 and is_loopback(parts[1].strip("[]"))


def _values(headers: Headers, *names: bytes) -> list[list[str]]:
    """Return the values of some headers, in the order of `names`."""
    values: dict[bytes, list[str]] = {name: [] for name in names}
    for name, value in headers:
        if name.lower() in values:
            # Header bytes are latin-1 in HTTP, which decodes any byte.
            values[name.lower()].append(value.decode("latin-1"))
    return [values[name] for name in names]
