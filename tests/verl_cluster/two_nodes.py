"""Two nodes of a Ray cluster on one machine, each in a network namespace with its own address."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.children import run_child, started_child

JOBS = 8265
# Another one in each process: a bridge that a killed test left must not take this one's packets.
SUBNET = f"10.213.{os.getpid() % 250}"


def can_make_namespaces() -> bool:
    """Whether this user may make network namespaces, and the tools are there."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"probe{os.getpid()}"
    made = _ip("netns", "add", name, check=False)
    if made.returncode == 0:
        _ip("netns", "del", name)
    return made.returncode == 0


@contextmanager
def two_nodes(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Start `ray start --head` in one namespace and `ray start --address` in another.

    Yields the URL of the job server. The two reach each other only over a bridge, as two machines
    reach each other over a switch.
    """
    bridge = f"orb{os.getpid() % 10_000}"
    with ExitStack() as stack:
        _ip("link", "add", "name", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge, check=False)
        _ip("addr", "add", f"{SUBNET}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number in (1, 2):
            _namespace(stack, bridge, number)
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        ray += ["--num-cpus=16", "--num-gpus=1", "--disable-usage-stats"]
        head = ["--head", "--port=6379", f"--dashboard-port={JOBS}", "--dashboard-host=0.0.0.0"]
        head += [f"--temp-dir={folder}", f"--node-ip-address={SUBNET}.1"]
        worker = [f"--address={SUBNET}.1:6379", f"--node-ip-address={SUBNET}.2"]
        # gloo would look for the address of the host's name, which is in neither namespace.
        known = {**environment, "GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "eth0"}
        for number, words in ((1, head), (2, worker)):
            log = stack.enter_context((folder / f"node{number}.log").open("wb"))
            inside = ["ip", "netns", "exec", f"{bridge}n{number}", *ray, *words]
            node = stack.enter_context(started_child(inside, stdout=log, stderr=log, env=known))
            stack.callback(_end, node)
            if number == 1:
                _await_jobs(folder / "node1.log")
        yield f"http://{SUBNET}.1:{JOBS}"


def _namespace(stack: ExitStack, bridge: str, number: int) -> None:
    name, outer = f"{bridge}n{number}", f"{bridge}v{number}"
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name, check=False)
    _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", outer, "master", bridge, "up")
    _ip("-n", name, "addr", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", name, "link", "set", "lo", "up")


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_child(["ip", *words], check=check)


def _end(node: subprocess.Popen[str]) -> None:
    node.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.wait(30)


def _await_jobs(log: Path) -> None:

    until = time.monotonic() + 300
    while time.monotonic() < until:
        with socket.socket() as probe:
            probe.settimeout(2)
            if probe.connect_ex((f"{SUBNET}.1", JOBS)) == 0:
                return
        time.sleep(0.3)
    raise AssertionError(log.read_text())
