"""The three servers refuse an address that cannot be had in the same way."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.report.folders import training

COMMANDS = {
    "serve": ["serve", "tiny"],
    "proxy": ["proxy", "--to", "http://127.0.0.1:9/v1", "--out", "journal"],
    "report": ["report", "run", "--live"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training(Path("run"), steps=1)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("port", ["99999", "65536", "-1"])
def test_a_port_that_cannot_exist_is_a_wrong_setting(run: Run, words: list[str], port: str) -> None:
    done = run(*words, f"--port={port}")
    assert done.code == 2
    assert f"port must be a whole number from 0 to 65535, got {port}" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_port_in_use_is_named(run: Run, words: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(*words, f"--port={port}")
    assert done.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.err
    assert "choose another port" in done.err


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_host_that_is_not_here_is_named(run: Run, words: list[str]) -> None:
    done = run(*words, "--host=203.0.113.9", "--port=0", *(["--token=t"] * (words[0] == "proxy")))
    assert done.code == 2
    assert "cannot listen on 203.0.113.9:0" in done.err
