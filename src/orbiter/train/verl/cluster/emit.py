"""Write the Slurm script or the KubeRay manifest that starts a Ray cluster and a run on it.

Both start the same command on the head of the cluster, with the run's folder as it is written by
`orbiter-train train --emit`. A second start of the same job resumes the run.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orbiter.train.errors import ConfigError
from orbiter.train.verl.config import VeRLConfig

CPUS_A_GPU = 8
"""Processors that each GPU gets: verl asks Ray for three per worker, and the agents need some."""
GIB_A_GPU = 64
"""Memory that each GPU gets; a node's copy of the weights passes through it."""
HEAD_CPUS, HEAD_GIB = 8, 32
"""What the head of a Kubernetes cluster gets; it has no GPU and holds the trainer's data."""
SHM = "/dev/shm"
SECRET = "orbiter-train"
"""Name of the Kubernetes secret that holds the variables of `environment_variables`."""
NAME = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJob:
    """A run to be started on a cluster."""

    config: VeRLConfig
    folder: Path
    """The run's folder, on a file system that every node sees under this path."""
    tasks: int
    """Prompts, or tasks of an agent."""
    agent: bool

    def __post_init__(self) -> None:
        """Refuse a run that does not belong on a cluster.

        Raises:
            ConfigError: it is not for verl, or it is a rehearsal.
        """
        if self.config.backend != "verl":
            raise ConfigError("--emit needs train.backend='verl'; a local run needs no cluster")
        if self.config.device == "cpu":
            raise ConfigError("--emit needs train.device='auto' or 'cuda'; 'cpu' is a rehearsal")
        if not self.folder.is_absolute():
            raise ConfigError(
                f"--emit needs --out with an absolute path that every node sees, got {self.folder}"
            )

    @property
    def name(self) -> str:
        """A name that Slurm and Kubernetes take."""
        return NAME.sub("-", self.folder.name.lower()).strip("-")[:40] or "orbiter-train"

    @property
    def steps(self) -> int:
        """Steps of the whole run; verl drops an incomplete batch."""
        return self.config.epochs * (self.tasks // self.config.batch_size)

    def described(self) -> list[str]:
        """Return the plan as lines: machines, steps, and the tokens at most."""
        config = self.config
        gpus = config.nodes * config.gpus_per_node
        drawn = config.max_response_length * (config.max_turns if self.agent else 1)
        # max_episode_tokens counts prompts as well, so it bounds what is sampled.
        most = drawn if config.max_episode_tokens is None else config.max_episode_tokens
        tokens = self.steps * config.samples_per_step * min(drawn, most)
        kind = "episodes" if self.agent else "samples"
        return [
            f"{config.nodes} nodes x {config.gpus_per_node} GPUs = {gpus} GPUs, at least "
            f"{CPUS_A_GPU * config.gpus_per_node} processors and "
            f"{GIB_A_GPU * config.gpus_per_node} GiB of memory each",
            f"{self.steps} steps of {config.batch_size} x {config.group_size} {kind} of "
            f"{config.model}",
            f"at most {tokens:,} sampled tokens; the time is not known before the first step",
        ]

    def command(self, address: str) -> str:
        """Return the shell command of the run, which resumes it if it has begun."""
        folder = shlex.quote(str(self.folder))
        words = f"orbiter-train train --config {folder}/config.toml --out {folder}"
        # Decided when the job starts: a requeued one finds the file.
        resumed = f"$(test -e {folder}/metrics.jsonl && echo --resume)"
        return f"{words} train.ray_address={address} {resumed}"


def slurm_script(job: ClusterJob) -> str:
    """Return a script for `sbatch`; options on its command line override those in it."""
    config = job.config
    cpus, memory = CPUS_A_GPU * config.gpus_per_node, GIB_A_GPU * config.gpus_per_node
    notes = "\n".join(f"# {line}" for line in job.described())
    names = "\n".join(
        # The value is not in the script: Slurm passes the environment of `sbatch` on.
        f': "${{{name}:?set it before sbatch, which passes it on}}"'
        for name in config.environment_variables
    )
    start = f"ray start --num-gpus={config.gpus_per_node} --num-cpus={cpus} --block"
    return f"""#!/bin/bash
{notes}
# Further options go on the command line: sbatch --partition=... --account=... --time=... FILE
#SBATCH --job-name={job.name}
#SBATCH --nodes={config.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={config.gpus_per_node}
#SBATCH --cpus-per-task={cpus}
#SBATCH --mem={memory}G
#SBATCH --output={shlex.quote(f"{job.folder}/slurm-%j.log")}
#SBATCH --requeue

set -euo pipefail
{names}
export RAY_USAGE_STATS_ENABLED=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d' ' -f1)

# A job server runs code for anyone who reaches it: it listens on the loopback address of the head.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \\
  {start} --head --port=6379 --node-ip-address="$address" --dashboard-host=127.0.0.1 &
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n +2); do
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap {start} --address="$address:6379" &
done

for _ in $(seq 120); do  # wait for all nodes, ten minutes at most
  alive=$(ray list nodes --address="http://127.0.0.1:8265" --format=json 2>/dev/null |
    grep -c '"state": "ALIVE"' || true)
  [ "$alive" -ge {config.nodes} ] && break
  sleep 5
done
[ "$alive" -ge {config.nodes} ] || {{ echo "only $alive of {config.nodes} nodes came up"; exit 1; }}

{job.command("http://127.0.0.1:8265")}
"""


def kuberay_manifest(job: ClusterJob, *, image: str, claim: str) -> str:
    """Return a RayJob for the KubeRay operator, as JSON, which kubectl takes like YAML.

    Args:
        job: The run.
        image: Has verl, its rollout engine, orbiter-train, and what the agent imports.
        claim: Name of the volume claim, of mode ReadWriteMany, that holds the run's folder.

    Raises:
        ConfigError: the image or the claim is missing.
    """
    if not image or not claim:
        raise ConfigError(
            "--emit kuberay needs --image (with verl and orbiter-train) and --claim (the volume "
            "that holds the run's folder)"
        )
    config = job.config
    mount = str(job.folder.parent)
    gpus = config.gpus_per_node
    head = _pod(image, claim, mount, cpus=HEAD_CPUS, gib=HEAD_GIB, gpus=0, secrets=config)
    worker = _pod(
        image, claim, mount, cpus=CPUS_A_GPU * gpus, gib=GIB_A_GPU * gpus, gpus=gpus, secrets=config
    )
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": job.name,
            "annotations": {"orbiter-train/plan": "; ".join(job.described())},
        },
        "spec": {
            "entrypoint": f"bash -c {shlex.quote(job.command('http://127.0.0.1:8265'))}",
            # GPUs that wait for nobody cost as much as those at work.
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                # The head has no GPU, so verl's workers cannot be placed on it.
                "headGroupSpec": {
                    # All addresses of the pod: the operator submits the job, and asks how it
                    # goes, from its own pod. Let a NetworkPolicy admit no other.
                    "rayStartParams": {"num-gpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": {"spec": head},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "gpus",
                        "replicas": config.nodes,
                        "minReplicas": config.nodes,
                        "maxReplicas": config.nodes,
                        "rayStartParams": {"num-gpus": str(gpus)},
                        "template": {"spec": worker},
                    }
                ],
            },
        },
    }
    return json.dumps(manifest, indent=2) + "\n"


def _pod(
    image: str, claim: str, mount: str, *, cpus: int, gib: int, gpus: int, secrets: VeRLConfig
) -> dict[str, Any]:
    """Return the pod of one node; secrets come from a Kubernetes secret of the run's name."""
    resources: dict[str, Any] = {"cpu": str(cpus), "memory": f"{gib}Gi"}
    if gpus:
        resources["nvidia.com/gpu"] = str(gpus)
    container: dict[str, Any] = {
        "name": "ray",
        "image": image,
        "resources": {"limits": resources, "requests": dict(resources)},
        "volumeMounts": [{"name": "runs", "mountPath": mount}, {"name": "shm", "mountPath": SHM}],
        "env": [
            {
                "name": name,
                "valueFrom": {"secretKeyRef": {"name": SECRET, "key": name}},
            }
            for name in secrets.environment_variables
        ],
    }
    return {
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
            # Ray keeps its objects in shared memory, of which Kubernetes gives 64 MiB by default.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{gib // 2}Gi"}},
        ],
    }
