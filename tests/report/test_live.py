from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.report.live import LiveServer, serve_live
from orbiter.train.report.page import policy
from orbiter.train.runlog import RunLog
from tests.report.folders import CONFIG, go_on, training


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(training(tmp_path / "run", steps=3), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: LiveServer, path: str = "/", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def test_the_page_comes_with_its_policy_and_is_kept_by_nobody(server: LiveServer) -> None:
    reply, body = ask(server)
    assert reply.status == 200
    assert body.startswith(b"<!doctype html>")
    said = dict(reply.getheaders())
    assert said["Content-Security-Policy"] == policy(live=True) + "; frame-ancestors 'none'"
    assert said["Cache-Control"] == "no-store"
    assert said["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in said


def test_the_data_follows_the_run_and_unchanged_data_is_not_sent_again(server: LiveServer) -> None:
    reply, body = ask(server, "/data")
    tag = reply.getheader("ETag") or ""
    assert json.loads(body)["runs"][0]["trainings"][0]["steps"] == [1, 2, 3]
    again, nothing = ask(server, "/data", If_None_Match=tag)
    assert (again.status, nothing) == (304, b"")
    with RunLog(server.following.folder, CONFIG | {"seed": 0}) as log:
        go_on(log, 4, 4, random.Random(1))
    reply, body = ask(server, "/data", If_None_Match=tag)
    assert reply.status == 200
    (run,) = json.loads(body)["runs"][0]["trainings"]
    assert run["steps"] == [1, 2, 3, 4]
    assert run["groups_in_all"] == 12


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.nip.example", ""]
)
def test_a_website_cannot_read_it_by_way_of_dns(server: LiveServer, host: str) -> None:
    for path in ("/", "/data"):
        reply, body = ask(server, path, Host=host.format(port=server.server_address[1]))
        assert reply.status == 403
        assert b"reward" not in body


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:80", "[::1]:80"])
def test_its_own_names_are_answered(server: LiveServer, host: str) -> None:
    assert ask(server, Host=host)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_but_reading_is_answered(server: LiveServer, method: str) -> None:
    assert ask(server, method=method)[0].status == 501


@pytest.mark.parametrize(
    "path",
    ["/run.json", "/metrics.jsonl", "/../run.json", "/%2e%2e/run.json", "/data/", "/x?y"],
)
def test_no_file_of_the_folder_is_answered(server: LiveServer, path: str) -> None:
    assert ask(server, path)[0].status == 404


def test_head_sends_no_body(server: LiveServer) -> None:
    reply, body = ask(server, method="HEAD")
    assert (reply.status, body) == (200, b"")


def test_beyond_this_machine_a_token_is_needed(tmp_path: Path) -> None:
    with LiveServer(training(tmp_path, steps=1), "0.0.0.0", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert ask(server)[0].status == 404
            assert ask(server, "/data")[0].status == 404
            assert len(server.token) >= 20
            assert server.url.endswith(f"/{server.token}/")
            assert ask(server, f"/{server.token}/data")[0].status == 200
        finally:
            server.shutdown()
            thread.join()


def test_a_damaged_run_is_told_as_such(server: LiveServer) -> None:
    with (server.following.folder / "metrics.jsonl").open("ab") as file:
        file.write(b"nonsense\n")
    reply, body = ask(server, "/data")
    assert reply.status == 500
    assert b"metrics.jsonl:4 is not a record as it was written" in body


def test_a_port_that_is_taken_is_named(server: LiveServer, tmp_path: Path) -> None:
    port = server.server_address[1]
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        serve_live(training(tmp_path / "b", steps=1), port=port)
    with pytest.raises(StorageError, match="holds no run"):
        serve_live(tmp_path / "nowhere")


def test_the_address_is_told_once_it_can_be_opened(tmp_path: Path) -> None:
    told: list[str] = []

    def stop(url: str) -> None:
        told.append(url)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve_live(training(tmp_path, steps=1), port=0, on_ready=stop)
    assert told[0].startswith("http://127.0.0.1:")
