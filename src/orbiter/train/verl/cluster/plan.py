"""Make the plan of a run on verl: its settings, files and machines, checked by verl itself.

This file does not write files, load models or start the run; `run.py` does.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orbiter.train.errors import ConfigError, MissingExtraError
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.cluster.agents import ShippedAgent
from orbiter.train.verl.cluster.layout import Layout, steps_per_epoch
from orbiter.train.verl.cluster.overrides import (
    as_arguments,
    checkpoint_frequency,
    in_float32,
    make_overrides,
    save_frequency,
)
from orbiter.train.verl.cluster.process import ask
from orbiter.train.verl.cluster.rewards import Shipped
from orbiter.train.verl.cluster.versions import TESTED, install_command, untested
from orbiter.train.verl.config import VeRLConfig

ENTRY_POINT = "verl.trainer.main_ppo"
"""The module of verl that runs the training."""
PLUGIN = "orbiter.train.verl.cluster.cpu.plugin"
CHECKING_SECONDS = 300.0
"""Time limit for verl to compose its configuration, which usually takes about ten seconds."""
POLL_SECONDS = 0.05
"""Interval at which a rehearsal's trainer checks for new samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """The plan of a run on verl; print it for a readable summary."""

    overrides: Mapping[str, object]
    """Keys of verl's configuration and their values."""
    composed: Mapping[str, Any]
    """verl's whole configuration with the overrides applied, by dotted key."""
    files: Mapping[str, str]
    """Paths that would be written, with a description of each."""
    command: Sequence[str]
    """The command that would be run."""
    environment: Mapping[str, str]
    """Environment variables that the job gets in addition to the current ones."""
    nodes: int
    gpus_per_node: int
    device: str
    """Device of the workers: "cuda" or "cpu"."""
    where: str
    """Ray's job server, or "a local Ray"."""
    steps: int
    """Number of steps in the whole run."""
    verl: str
    """The version of verl."""
    notes: Sequence[str] = ()
    """Differences from the same config on one machine."""

    def __str__(self) -> str:
        unit = "GPUs" if self.device == "cuda" else "CPU workers"
        lines = [
            f"verl {self.verl} on {self.where}: {self.nodes} x {self.gpus_per_node} {unit}, "
            f"{self.steps} steps",
            "overrides:",
            *(f"  {argument}" for argument in as_arguments(self.overrides)),
            "files:",
            *(f"  {path}: {what}" for path, what in self.files.items()),
            "environment:",
            *(f"  {name}={value}" for name, value in self.environment.items()),
            f"command: {shlex.join(self.command[:3])} <overrides>",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


async def make_plan(
    config: VeRLConfig,
    layout: Layout,
    rewards: Sequence[Shipped],
    *,
    agent: ShippedAgent | None = None,
    described: str,
) -> ClusterPlan:
    """Make the plan of a run, and let verl compose and validate it.

    `described` is the model that verl reads during the check: a folder that may lack the weights.

    Raises:
        ConfigError: the plan cannot work; the message lists every reason.
        MissingExtraError: the interpreter does not have verl; says what to install.
    """
    overrides = make_overrides(config, layout)
    environment = job_environment(config, layout, rewards, agent)
    # The check reads the model's configuration, which may not be where the run will have it.
    asked = {k: described if v == layout.model else v for k, v in overrides.items()}
    request = {
        "overrides": as_arguments(asked),
        "tested": TESTED,
        "modules": sorted({each.module for each in rewards if each.file is None}),
        "agent_modules": [] if agent is None else agent.modules,
        "packages": {} if agent is None else dict(agent.packages),
    }
    answer = await _ask_verl(config, environment, request)
    # All reasons at once, so that a user does not correct them one by one.
    refusals = [*_too_few(config, layout), *answer["refusals"], *_absent(rewards, answer)]
    if agent is not None:
        refusals += [*answer["agent"], *_unset(config)]
    if config.device != "cpu" and config.ray_address is None:
        refusals += _without_gpus(config, answer["devices"])
    if refusals:
        raise ConfigError("this run cannot work on verl: " + "; ".join(refusals))
    command = [interpreter(config), "-m", ENTRY_POINT, *as_arguments(overrides)]
    return ClusterPlan(
        overrides=overrides,
        composed={k: layout.model if v == described else v for k, v in answer["composed"].items()},
        files=_files(config, layout, rewards, agent),
        command=command,
        environment=environment,
        nodes=config.nodes,
        gpus_per_node=config.gpus_per_node,
        device="cpu" if config.device == "cpu" else "cuda",
        where=config.ray_address or "a local Ray",
        steps=config.epochs * steps_per_epoch(config, layout.prompts),
        verl=answer["version"],
        notes=[*_notes(config, layout), *answer["notes"]],
    )


def interpreter(config: VeRLConfig) -> str:
    """Return the Python that verl is installed for."""
    return sys.executable if config.verl_python is None else os.fspath(config.verl_python)


def job_environment(
    config: VeRLConfig,
    layout: Layout,
    rewards: Sequence[Shipped],
    agent: ShippedAgent | None = None,
) -> dict[str, str]:
    """Return the variables that the job needs."""
    roots = dict.fromkeys(shipped.root for shipped in rewards if shipped.root is not None)
    roots |= dict.fromkeys([] if agent is None else agent.roots)
    made = {
        "VERL_FILE_LOGGER_PATH": str(layout.metrics_file),
        "HYDRA_FULL_ERROR": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if roots:
        known = os.environ.get("PYTHONPATH")
        # Before what is set already: the user's modules must be the ones of this process.
        made["PYTHONPATH"] = os.pathsep.join([*roots, *([known] if known else [])])
    if config.device == "cpu":
        made |= {
            "VERL_USE_EXTERNAL_MODULES": PLUGIN,
            # verl registers its engines for cuda and npu only; on the CPU platform they work as
            # they are.
            "VERL_ENGINE_DEVICE": "cuda",
            "ORBITER_VERL_POLL_SECONDS": str(POLL_SECONDS),
            "OMP_NUM_THREADS": "1",
            # Ray would kill workers because of other processes' memory use
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_prestart_worker_first_driver": "0",  # one worker per logical CPU, none needed
            "RAY_enable_worker_prestart": "0",
        }
    return made


def named_variables(config: VeRLConfig) -> dict[str, str]:
    """Return the variables of this process that the workers get too; in no file and no plan."""
    return {name: os.environ[name] for name in config.environment_variables if name in os.environ}


def _unset(config: VeRLConfig) -> list[str]:
    return [
        f"environment_variables names {name}, which is not set in this process"
        for name in config.environment_variables
        if name not in os.environ
    ]


async def _ask_verl(
    config: VeRLConfig, environment: Mapping[str, str], request: Mapping[str, object]
) -> dict[str, Any]:
    """Let the interpreter that has verl compose and check the overrides."""
    python = interpreter(config)
    try:
        finished = await ask(
            [python, "-m", "orbiter.train.verl.cluster.inside.check"],
            environment={**os.environ, **environment},
            stdin=json.dumps(request, default=str),
            seconds=CHECKING_SECONDS,
        )
    except OSError as error:
        raise ConfigError(f"verl_python={python!r} cannot be run: {error.strerror}") from error
    if finished.code:
        lines = finished.errors.strip().splitlines() or ["no reason given"]
        raise MissingExtraError(
            f"{python} cannot check a plan for verl ({lines[-1]}); run: {install_command(python)}"
        )
    # The last line, since verl and its libraries print while they are imported.
    answer: dict[str, Any] = json.loads(finished.output.splitlines()[-1])
    if answer["version"] is None:
        raise MissingExtraError(
            f"verl is not installed for {python}; run: {install_command(python)}, or name the "
            "interpreter that has it with verl_python="
        )
    if answer["version"] not in TESTED:
        raise ConfigError(untested(answer["version"]))
    return answer


def _too_few(config: VeRLConfig, layout: Layout) -> list[str]:
    if layout.prompts >= config.batch_size:
        return []
    return [
        f"batch_size={config.batch_size} prompts per step, but there are only {layout.prompts}: "
        "verl drops an incomplete batch, so no batch would remain; lower batch_size"
    ]


def _absent(rewards: Sequence[Shipped], answer: Mapping[str, Any]) -> list[str]:
    return [
        f"reward {each.name!r}: {each.module} cannot be imported by verl's interpreter "
        f"({answer['missing'][each.module]})"
        for each in rewards
        if each.file is None and each.module in answer["missing"]
    ]


def _without_gpus(config: VeRLConfig, devices: int) -> list[str]:
    if devices >= config.gpus_per_node:
        return []
    return [
        f"gpus_per_node={config.gpus_per_node}, and this machine has {devices} GPUs; name a "
        "cluster with ray_address=, or rehearse with device='cpu'"
    ]


def _files(
    config: VeRLConfig, layout: Layout, rewards: Sequence[Shipped], agent: ShippedAgent | None
) -> dict[str, str]:
    made = {layout.train_file: f"{layout.prompts} rows to train on"}
    if layout.validates:
        made[layout.held_out_file] = "rows to validate on"
    made[layout.reward_file] = "the rewards, as verl calls them"
    made |= {
        layout.folder / str(each.file): f"source of reward {each.name!r}"
        for each in rewards
        if each.file is not None
    }
    if agent is not None:
        made[layout.agent_file] = "the agent and the settings of its episodes"
        made[layout.loop_file] = "the agent loop that verl makes for each episode"
        made |= {layout.folder / str(c.file): "source of the agent" for c in agent.code if c.file}
    made[layout.metrics_file] = "verl's metrics, one line per step"
    made[layout.samples] = "the samples of the last step"
    made[layout.checkpoints] = "verl's checkpoints"
    made[layout.folder / "job.log"] = "the output of the job"
    made[layout.folder.parent / "final"] = "the trained model"
    if layout.validates and config.eval_every and config.output_dir is not None:
        made[layout.folder.parent / "best"] = "the model of the best validation"
    return {str(path): what for path, what in made.items()}


def _notes(config: VeRLConfig, layout: Layout) -> list[str]:
    """Return notes on how the run differs from the same config on one machine."""
    left, saves = layout.prompts % config.batch_size, checkpoint_frequency(config, layout)
    notes = {
        f"{left} of {layout.prompts} prompts are left out of each epoch, different ones each time: "
        "verl drops an incomplete batch": left > 0,
        "warmup_steps counts verl's steps, and the first has learning rate 0": (
            config.warmup_steps > 0
        ),
        f"a checkpoint every {saves} steps: verl saves after whole steps": (
            config.save_every > 0 and config.updates_per_step > 1
        ),
        f"a checkpoint every {saves} steps, so that the best validated model can be kept": (
            saves > 0 and saves != save_frequency(config)
        ),
        f"up to {config.max_staleness} steps are sampled ahead, by older weights": (
            config.max_staleness > 0
        ),
        "the ratio of the loss is that to the weights that sampled, without max_importance": (
            config.max_staleness > 0 and layout.agent
        ),
        "a prompt that is too long loses its first tokens, the marker of its turn included": (
            config.on_long_prompt == "truncate-left"
        ),
        "an episode that branches is several rows with its advantage and its weight: verl's row "
        "counts are of rows, ours of episodes": layout.agent,
        "the trained model is written in bfloat16, as verl's merger does": in_float32(config),
    }
    applying = [note for note, applies in notes.items() if applies]
    return [*ALGORITHMS[config.algorithm].verl_notes(), *applying]
