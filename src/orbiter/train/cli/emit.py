"""`orbiter-train train --emit`: write what starts a run on a cluster, and start nothing."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.job import Job
from orbiter.train.cli.output import Output
from orbiter.train.cli.settings.config_file import write_run_config
from orbiter.train.errors import ConfigError
from orbiter.train.storage import write_file
from orbiter.train.verl import VeRLConfig
from orbiter.train.verl.cluster.emit import ClusterJob, kuberay_manifest, slurm_script


class Scheduler(StrEnum):
    """What starts the nodes of a cluster."""

    SLURM = "slurm"
    KUBERAY = "kuberay"


FILES = {Scheduler.SLURM: "run.sbatch", Scheduler.KUBERAY: "rayjob.json"}
STARTS = {Scheduler.SLURM: "sbatch", Scheduler.KUBERAY: "kubectl apply -f"}

Emit = Annotated[
    Scheduler | None,
    typer.Option(
        "--emit", help="Write a Slurm script or a KubeRay manifest of the run, and start nothing."
    ),
]
Image = Annotated[str, typer.Option(help="With --emit kuberay: the image of the nodes.")]
Claim = Annotated[
    str, typer.Option(help="With --emit kuberay: the volume claim that holds the run's folder.")
]


def emit(job: Job, scheduler: Scheduler, output: Output, *, image: str, claim: str) -> ExitCode:
    """Check the run, and write its settings and what starts it into its folder."""
    config = job.trainer.config
    if not isinstance(config, VeRLConfig):
        raise ConfigError("--emit is for `orbiter-train train`")
    cluster = ClusterJob(
        config=config, folder=job.folder, tasks=len(job.items), agent=job.agent is not None
    )
    if cluster.steps < 1:
        raise ConfigError(
            f"batch_size={config.batch_size}, but there are only {len(job.items)} tasks: verl "
            "drops an incomplete batch, so nothing would be left"
        )
    made = (
        slurm_script(cluster)
        if scheduler is Scheduler.SLURM
        else kuberay_manifest(cluster, image=image, claim=claim)
    )
    # Before anything is written: a cluster's queue is a bad place to find a mistake.
    asyncio.run(job.trainer.validate())
    path = _written(job, FILES[scheduler], made)
    for line in cluster.described():
        output.say(line)
    output.say(f"written: {path}; start it with: {STARTS[scheduler]} {path}")
    output.result({"file": str(path), "plan": cluster.described(), "folder": str(job.folder)})
    return ExitCode.OK


def _written(job: Job, name: str, text: str) -> Path:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_run_config(job.folder, job.run_config())
    path = job.folder / name
    write_file(path, text.encode())
    return path
