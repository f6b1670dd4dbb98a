"""The one guard of every server: what may come in without a token, and what may not."""

from __future__ import annotations

import socket

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.net import bearer_token, bind, refuse_web_pages, same_secret

OWN_HOST = (b"host", b"127.0.0.1:8000")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost:1", "127.0.0.1", "127.0.0.1:8000", "127.8.9.1:80",
     "[::1]", "[::1]:65535", "[::ffff:127.0.0.1]:80"],
)  # fmt: skip
def test_this_machines_own_names_are_served(host: str) -> None:
    assert refuse_web_pages([(b"Host", host.encode())]) is None


@pytest.mark.parametrize(
    "host",
    ["", " ", "evil.example", "evil.example:8000", "127.0.0.1.evil.example",
     "localhost.evil.example", "x/health?", "127.0.0.1/health", "localhost?", "localhost#",
     "user@localhost",
     "localhost@evil",
     "localhost:", "localhost:x", "localhost:99999", "localhost:80:80", "::1", "[::1", "::1]", "[]",
     "127.1", "0177.0.0.1", "2130706433", "127.0.0.1 ", " localhost", "localhost\t", "localhost.",
     "0.0.0.0", "10.0.0.1", "[::2]", "[fe80::1%lo]", "localhost,evil", "\xfflocalhost",
     "[[::1]]:80",
     "http://localhost", "localhost\\@evil", "%6cocalhost", "\uff11\uff12\uff17.0.0.1"],
)  # fmt: skip
def test_a_foreign_or_unreadable_host_is_refused(host: str) -> None:
    refused = refuse_web_pages([(b"host", host.encode())])
    assert refused is not None
    assert refused.status == 403


def test_exactly_one_host_header_is_needed() -> None:
    for headers in ([], [OWN_HOST, OWN_HOST], [OWN_HOST, (b"HOST", b"evil.example")]):
        assert refuse_web_pages(headers) is not None


@pytest.mark.parametrize(
    ("origin", "served"),
    [("http://127.0.0.1:8000", True), ("http://localhost:3000", True), ("http://[::1]:1", True),
     ("https://localhost", True), ("https://evil.example", False), ("null", False), ("", False),
     ("http://localhost.evil.example", False), ("http://localhost@evil.example", False),
     ("http://evil.example#localhost", False), ("http://localhost/", False), ("file://", False),
     ("chrome-extension://abcdef", False), ("localhost", False), ("HTTP://localhost", False)],
)  # fmt: skip
def test_a_page_of_another_site_is_refused(origin: str, served: bool) -> None:
    headers = [OWN_HOST, (b"Origin", origin.encode())]
    assert (refuse_web_pages(headers) is None) == served
    twice = [*headers, (b"origin", b"https://evil.example")]
    assert refuse_web_pages(twice) is not None


def test_a_cross_site_request_without_an_origin_is_refused() -> None:
    assert refuse_web_pages([OWN_HOST, (b"sec-fetch-site", b"cross-site")]) is not None
    assert refuse_web_pages([OWN_HOST, (b"sec-fetch-site", b"same-origin")]) is None
    assert refuse_web_pages([OWN_HOST, (b"sec-fetch-site", b"none")]) is None


@pytest.mark.parametrize(
    ("value", "token"),
    [(b"Bearer abc", b"abc"), (b"bearer abc", b"abc"), (b"Bearer  abc ", b"abc"), (b"abc", b""),
     (b"Basic abc", b""), (b"", b""), (b"Bearer", b"")],
)  # fmt: skip
def test_the_bearer_token_is_read_from_one_header(value: bytes, token: bytes) -> None:
    assert bearer_token([(b"Authorization", value)]) == token
    assert bearer_token([(b"authorization", value), (b"authorization", value)]) == b""


def test_secrets_may_hold_any_character() -> None:
    assert same_secret("schlüssel", "schlüssel".encode())
    assert not same_secret("schlüssel", "schlussel")
    assert not same_secret("", "x")


@pytest.mark.parametrize("port", [-1, 65536, 99999, True, 80.0, "80", None])
def test_a_port_that_cannot_exist_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="port must be a whole number from 0 to 65535"):
        bind("127.0.0.1", port)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port} \(Address"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "a" * 300])
def test_a_host_of_another_machine_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        bind(host, 0)
