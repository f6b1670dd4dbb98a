"""A real Slurm controller takes the script of `--emit slurm`, or says why it does not.

Debian's slurmctld, slurm-client and munge are enough: `sbatch --test-only` schedules a job without
starting it, so the nodes exist in the controller's configuration only.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orbiter.train.verl.cluster.emit import slurm_script
from tests.children import run_child, started_child
from tests.cli.test_emit import job

SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin"
PROGRAMS = {name: shutil.which(name, path=SEARCHED) for name in ("slurmctld", "munged", "sbatch")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"not installed: {', '.join(MISSING)}; Debian: slurmctld slurm-client munge",
    ),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="munged needs root"),
]

CONFIG = """
ClusterName=rehearsal
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=gpu[1-4] CPUs=64 RealMemory=1000000 Gres=gpu:8 State=CLOUD
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=3600
"""
"""Four nodes with eight GPUs each; CLOUD nodes count although none has started."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which sbatch finds a controller of this machine's own."""
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a socket's path must be short
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        folder.chmod(0o755)  # munge refuses others
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(folder=folder, port=_free_port()))
        known = {**os.environ, "SLURM_CONF": str(config)}
        munge = [PROGRAMS["munged"], "--foreground", "--force", f"--key-file={key}"]
        munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
        munge += [f"--socket={folder}/munge.sock"]
        log = stack.enter_context((folder / "log").open("wb"))
        for command in (munge, [PROGRAMS["slurmctld"], "-D"]):
            words = [str(word) for word in command]
            child = started_child(words, stdout=log, stderr=log, env=known)
            stack.callback(_end, stack.enter_context(child))
        _await_controller(known, folder / "log")
        yield known


@pytest.mark.parametrize("folder", ["/shared/runs/a", "/shared/My runs/it's 1"])
def test_slurm_takes_the_script_of_a_run(
    slurm: dict[str, str], tmp_path: Path, folder: str
) -> None:
    asked = asked_of(slurm, tmp_path, slurm_script(job(folder, nodes=2, gpus_per_node=8)))
    assert asked.returncode == 0, asked.stderr
    assert re.search(r"using 128 processors on nodes gpu\[1-2\]", asked.stderr), asked.stderr


@pytest.mark.parametrize(("nodes", "gpus"), [(5, 8), (1, 9)])
def test_slurm_refuses_a_run_that_is_larger_than_the_cluster(
    slurm: dict[str, str], tmp_path: Path, nodes: int, gpus: int
) -> None:
    asked = asked_of(slurm, tmp_path, slurm_script(job(nodes=nodes, gpus_per_node=gpus)))
    assert asked.returncode == 1
    assert "Requested node configuration is not available" in asked.stderr


def test_slurm_refuses_a_damaged_script(slurm: dict[str, str], tmp_path: Path) -> None:
    damaged = slurm_script(job()).replace("--gpus-per-node=4", "--gpus-per-nod=four")
    asked = asked_of(slurm, tmp_path, damaged)
    assert asked.returncode != 0


def asked_of(slurm: dict[str, str], folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = folder / "run.sbatch"
    path.write_text(script)
    return run_child(["sbatch", "--test-only", str(path)], env=slurm)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_controller(environment: dict[str, str], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if run_child(["sinfo"], env=environment).returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
