"""The real verl on Ray, in an environment of its own: `make test-verl`. Elsewhere none runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.children import started_child
from tests.verl_cluster.rehearsing import processes_with

collect_ignore_glob = ["test_*.py"] if find_spec("verl") is None else []

QUIET = {  # what a Ray started here need not do
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A Ray cluster of one node, as `ray start --head` makes it: the URL of its job server."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    port, jobs, agent = _free_port(), _free_port(), _free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={port}", f"--dashboard-port={jobs}", "--dashboard-host=127.0.0.1"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=32", "--num-gpus=2"]
    # Two test processes have a cluster each, and Ray gives every agent the same port.
    command += [f"--dashboard-agent-listen-port={agent}"]
    command += [f"--temp-dir={folder}", "--disable-usage-stats"]
    log = Path(folder) / "start.log"
    try:
        with (
            log.open("wb") as output,
            started_child(
                command, stdout=output, stderr=output, env={**os.environ, **QUIET}
            ) as head,
        ):
            _await_port(jobs, head, log)
            yield f"http://127.0.0.1:{jobs}"
            head.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(30)
    finally:
        for left in processes_with(folder):
            os.kill(left, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def quiet_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray that a run starts keeps its files in a folder that goes with the test."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path must be short
    for name, value in {**QUIET, "RAY_TMPDIR": folder}.items():
        monkeypatch.setenv(name, value)
    yield
    shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, head: subprocess.Popen[str], log: Path) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert head.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise AssertionError(log.read_text())
