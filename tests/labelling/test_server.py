"""The server of the labelling page answers its own page only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from orbiter.train.evaluation import read_judgements
from orbiter.train.labelling import LabelServer
from orbiter.train.trajectory import TrajectoryItem
from tests.labelling.conftest import serving

ITEMS = [TrajectoryItem(f"task {n}", f"secret-model says {n}", 0.25, {"by": "m1"}) for n in (0, 1)]
JSON = {"Content-Type": "application/json"}


def ask(
    server: LabelServer,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    try:
        connection.request(method, path, body, dict(headers or {}))
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def label(server: LabelServer, body: object, **headers: str) -> tuple[int, str]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(server, "POST", f"/{server.token}/label", text, {**JSON, **headers})


def test_a_label_is_taken_and_the_next_unit_comes_back(tmp_path: Path) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        status, text = label(server, {"place": 0, "value": True})
        assert status == 200
        assert json.loads(text)["place"] == 1
        assert json.loads(text)["done"] == 1
        status, text = label(server, {"place": 1, "value": False})
        assert json.loads(text)["place"] == json.loads(text)["total"] == 2
        assert ask(server, "GET", f"/{server.token}/unit/0")[0] == 200


def test_a_label_of_an_outdated_view_is_refused_with_the_present_one(tmp_path: Path) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        assert label(server, {"place": 0, "version": 0, "value": True, "note": "a"})[0] == 200
        status, text = label(server, {"place": 0, "version": 0, "value": False})
        assert status == 409
        unit = json.loads(text)
        assert (unit["place"], unit["version"]) == (0, 1)
        assert unit["given"] == {"value": True, "note": "a"}
        assert server.session.done == 1
        strange: list[object] = [None, "1", [], 2]
        for version in strange:
            assert label(server, {"place": 0, "version": version, "value": False})[0] == 409
        assert label(server, {"place": 0, "version": 1, "value": False})[0] == 200
        assert label(server, {"place": 0, "value": True, "note": "\ud800"})[0] == 400
    assert [j.value for j in read_judgements(tmp_path / "l.jsonl")] == [1.0, 0.0]


def test_it_is_blind(tmp_path: Path) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        told = json.loads(ask(server, "GET", f"/{server.token}/unit/0")[1])
    counts = {"done", "total", "place", "version"}
    assert set(told) == {"kind", "scale", "rater", "task", "answers"} | counts


@pytest.mark.parametrize(
    "path", ["/", "/label", "/wrong/", "/wrong/label", "/{token}", "/{token}/../x"]
)
def test_nothing_is_answered_without_the_token(tmp_path: Path, path: str) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        full = path.replace("{token}", server.token)
        for method, body in (("GET", None), ("POST", b'{"place": 0, "value": true}')):
            assert ask(server, method, full, body, JSON)[0] == 404
        assert server.session.done == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_foreign_pages_are_refused_even_with_the_token(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        assert label(server, {"place": 0, "value": True}, **headers)[0] == 403
        assert ask(server, "GET", f"/{server.token}/", headers=headers)[0] == 403
        assert server.session.done == 0


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_label_that_a_form_could_send_is_refused(tmp_path: Path, kind: str) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        status, text = label(server, {"place": 0, "value": True}, **{"Content-Type": kind})
        assert status == 400
        assert "application/json" in text
        assert server.session.done == 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'"x"', b"[" * 50_000, b'{"place": 0}x', b'{"place": 2, "value": true}',
        b'{"place": "0", "value": true}', b'{"value": true}', b'{"place": 0, "value": "yes"}',
        b'{"place": 0, "value": true, "note": 3}', b'{"place": 0, "value": NaN}',
        b'{"place": 0, "value": true, "note": "\\ud800"}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_its_reason(tmp_path: Path, body: bytes) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        status, text = label(server, body)
        assert status == 400
        assert len(text) > 10
        assert server.session.done == 0
        assert label(server, {"place": 0, "value": True})[0] == 200


def test_a_body_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        port = server.server_address[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("POST", f"/{server.token}/label")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(10**9))
        connection.endheaders()
        assert connection.getresponse().status == 400
        connection.close()


@pytest.mark.parametrize("place", ["3", "-1", "x", "", "1e0", "0/..", "9" * 30])
def test_other_units_do_not_exist(tmp_path: Path, place: str) -> None:
    with serving(ITEMS, tmp_path / "l.jsonl") as server:
        assert ask(server, "GET", f"/{server.token}/unit/{place}")[0] == 404
