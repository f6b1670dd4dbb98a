"""Carry out a run on verl: write its files, run verl's entry point, read back its results.

The files of this folder do not import verl; they use only its keys, names and commands. Code that
imports verl runs in verl's interpreter (`inside/`, `cpu/`).
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

from orbiter.train.engine.config import settings_of
from orbiter.train.engine.progress import line_of
from orbiter.train.engine.thread import work
from orbiter.train.errors import CallbackError, StorageError, TrainingError
from orbiter.train.progress import Progress
from orbiter.train.runlog import RunLog, read_run
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.cluster.agents import ShippedAgent, sendable_rewards, ship_agent
from orbiter.train.verl.cluster.best import best_of, keep_best
from orbiter.train.verl.cluster.data import (
    Inputs,
    ModelFiles,
    describe_model,
    make_agent_tasks,
    make_prompts,
    model_files,
    write_files,
)
from orbiter.train.verl.cluster.follow import (
    OWN,
    MetricsLine,
    StepRow,
    Tail,
    episode_evaluation,
    episode_groups,
    first_fault,
    groups_of,
    step_row,
    steps_of,
)
from orbiter.train.verl.cluster.inside.shipment import FAULTS
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.merge import last_checkpoint, merge, merge_last
from orbiter.train.verl.cluster.plan import ClusterPlan, interpreter, make_plan, named_variables
from orbiter.train.verl.cluster.process import Child, last_lines
from orbiter.train.verl.cluster.rewards import Shipped, ship
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import RewardSpec
from orbiter.train.verl.samples import GROUPS_KEPT

log = logging.getLogger(__name__)

FOLDER, FINAL, BEST = "verl", "final", "best"
"""Subfolders of a run's folder, for the job's files, the trained model, and the best one."""
LOOKING_SECONDS = 0.2
"""Interval at which the job's files are checked."""
APART = ("step", "seconds", "tokens_per_second")
"""Entries of the history that are not metrics."""


@dataclass(slots=True)
class ClusterRun:
    """One run on verl, from its files to the trained model."""

    config: VeRLConfig
    layout: Layout
    plan: ClusterPlan
    inputs: Inputs
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """The metrics of every finished step."""
    stopping: bool = False
    """Whether the job should end after the current step."""
    flat_steps: int = 0
    has_taught: bool = False
    _sampled: int = 0
    """Last step whose samples are in the log."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.layout.folder.parent

    @property
    def job_log(self) -> Path:
        """File with the job's output."""
        return self.layout.folder / "job.log"

    @property
    def steps_done(self) -> int:
        """Number of finished steps."""
        return int(self.history[-1]["step"]) if self.history else self.layout.start

    async def train(self, progress: Progress) -> Path:
        """Run the job to its end and return the folder of the trained model.

        Raises:
            CallbackError: a reward failed in a worker; the job is stopped.
            TrainingError: the job failed, or a step took too long; shows the job's last lines.
        """
        with RunLog(
            self.folder,
            settings_of(self.config),
            resume_from=self.layout.start,
            trackers=self.config.trackers,
        ) as run_log:
            # After the log was opened, which cuts off the steps after the checkpoint.
            self.history += _earlier(self.folder, self.layout.start)
            self.catch_up(run_log)
            await work(write_files, self.config, self.layout, self.inputs)
            # A finished run that is resumed only merges its last checkpoint.
            if self.layout.start < self.plan.steps:
                async with self._job() as job:
                    await self._follow(job, run_log, progress)
        final = await merge_last(self.config, self.layout, self.folder / FINAL)
        if best_of(self.layout) is not None:
            await merge(self.config, self.layout, self.layout.best / "actor", self.folder / BEST)
        return final

    def means(self) -> dict[str, float]:
        """Return the mean of every metric over the last epoch."""
        per_epoch = max(1, self.plan.steps // self.config.epochs)
        # The last step before the epoch that was begun last.
        begun = (self.steps_done - 1) // per_epoch * per_epoch
        rows = [row for row in self.history if row["step"] > begun]
        names = dict.fromkeys(name for row in rows for name in row)
        names = {name: None for name in names if not name.startswith(OWN) and name not in APART}
        return {name: fmean(row[name] for row in rows if name in row) for name in names}

    def _job(self) -> Child:
        """Return the job as a child process: verl itself, or the command that submits it."""
        # Hydra would otherwise create its own output folders and logs.
        hydra = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
        command = [*self.plan.command, *hydra]
        # An inherited address would send a local job to another Ray cluster.
        inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        folder = self.layout.folder
        if self.config.ray_address is None:
            return Child(
                command,
                log=self.job_log,
                folder=folder,
                environment={**inherited, **self.plan.environment},
            )
        request = {
            "address": self.config.ray_address,
            # Chosen here, so that the job can be stopped even if its submission was interrupted.
            "submission_id": f"orbiter-{uuid.uuid4().hex[:12]}",
            # "python" on the cluster is another interpreter than the one here.
            "command": shlex.join(["python", *command[1:]]),
            "environment": {**self.plan.environment, **named_variables(self.config)},
        }
        return Child(
            [interpreter(self.config), "-m", "orbiter.train.verl.cluster.inside.submit"],
            log=self.job_log,
            folder=folder,
            environment=inherited,
            stdin=json.dumps(request) + "\n",
        )

    async def _follow(self, job: Child, run_log: RunLog, progress: Progress) -> None:
        """Record each step when it ends, until the job ends or a time limit passes."""
        tail, until = Tail(self.layout.metrics_file), monotonic() + self._patience
        while True:
            # Before the files are read: what the job wrote at its very end is then seen too.
            ended = await job.wait(LOOKING_SECONDS)
            for step in tail.new():
                self._record_step(step, run_log, progress)
                await self._keep_best()
                # Every finished step restarts the time limit.
                until = monotonic() + self._patience
            # Checked before the end of the job, because the fault is the more useful message.
            self._raise_fault()
            # At least one step, so that a stopped run has something to save.
            if ended or (self.stopping and self.steps_done > self.layout.start):
                break
            if monotonic() > until:
                raise TrainingError(
                    f"no step ended within step_timeout_seconds={self._patience:g}; the job was "
                    f"stopped after step {self.steps_done}. {self._last_words()}"
                )
        if not self.stopping and (job.code or self.steps_done < self.plan.steps):
            raise TrainingError(
                f"verl ended with code {job.code} after step {self.steps_done} of "
                f"{self.plan.steps}. {self._last_words()}"
            )
        # The last step's samples are written after its metrics, so they are read at the end.
        self._note_samples(run_log, self._unsampled(self.steps_done + 1))

    @property
    def _patience(self) -> float:
        return self.config.step_timeout_seconds

    def _last_words(self) -> str:
        return f"The end of {self.job_log}:\n{last_lines(self.job_log)}"

    def _raise_fault(self) -> None:
        fault = first_fault(self.layout.folder / FAULTS)
        if fault is not None:
            raise CallbackError(f"in verl's worker, {fault}")

    def catch_up(self, run_log: RunLog) -> None:
        """Log the steps that verl ended and saved while an earlier start was being stopped."""
        last = int(self.history[-1]["step"]) if self.history else 0
        for step in steps_of(self.layout.earlier_metrics_files):
            if last < step.number <= self.layout.start:
                self._log(step, run_log)
        known = {int(row["step"]) for row in self.history}
        # verl saves a step before it writes its metrics, so a kill in between loses these.
        if lost := sorted(set(range(1, self.layout.start + 1)) - known):
            log.warning("verl was stopped before it wrote the metrics of steps %s", lost)
        sampled = {int(str(group["step"])) for group in read_run(self.folder).samples}
        self._note_samples(run_log, sorted(known - sampled))

    def _log(self, step: MetricsLine, run_log: RunLog) -> StepRow:
        """Write one step to the run's folder and the history."""
        row = step_row(step.data, self.config.algorithm)
        row.metrics.update(episode_evaluation(self.layout.samples, step.number))
        run_log.write(step.number, row.metrics)
        run_log.time(step.number, row.clock)
        self.history.append({"step": step.number, **row.metrics, **row.clock})
        return row

    def _record_step(self, step: MetricsLine, run_log: RunLog, progress: Progress) -> None:
        """Log a step that ended now, show it, and stop a run that cannot learn."""
        row = self._log(step, run_log)
        self._note_samples(run_log, self._unsampled(step.number))
        progress.update(step.number, line_of(row.metrics | row.clock))
        self._watch(row.metrics)

    async def _keep_best(self) -> None:
        """Keep the weights of the step that ended last, if its validation is the best so far."""
        row = self.history[-1]
        if "eval/reward" in row and self.config.output_dir is not None:
            await work(keep_best, self.layout, int(row["step"]), row["eval/reward"])

    def _unsampled(self, before: int) -> range:
        """Return the steps of this start, up to this one, whose samples are not in the log yet."""
        return range(max(self._sampled, self.layout.start) + 1, before)

    def _note_samples(self, run_log: RunLog, steps: Iterable[int]) -> None:
        """Log the samples of steps; verl writes them shortly after a step's metrics."""
        for number in steps:
            dump = self.layout.samples / f"{number}.jsonl"
            if dump.exists():
                read = episode_groups if self.layout.agent else groups_of
                for group in read(dump)[:GROUPS_KEPT]:
                    run_log.sample(number, group)
                # The run's log has them now, and a dump holds every sample of a step.
                dump.unlink()
            self._sampled = number

    def _watch(self, metrics: dict[str, float]) -> None:
        """Stop a run that never had anything to learn from.

        Raises:
            TrainingError: for `max_flat_steps` steps all samples of a prompt got the same reward.
        """
        flat = ALGORITHMS[self.config.algorithm].is_flat(metrics)
        # verl's own metrics count rows, of which an episode may have several.
        if self.layout.agent:
            flat = metrics.get("flat_groups") == 1
        self.flat_steps = self.flat_steps + 1 if flat else 0
        self.has_taught |= not flat
        # A run that has learned before may be done; only one that never did is an error.
        if self.flat_steps >= self.config.max_flat_steps and not self.has_taught:
            raise TrainingError(
                f"nothing can be learned: in all {self.flat_steps} steps so far every sample of a "
                f"prompt got the same reward (most recently {metrics.get('reward', 0.0):.4g}). Use "
                "a reward that distinguishes better from worse answers, sample more (group_size, "
                "temperature), or "
                "start with easier prompts; max_flat_steps sets the number of such steps"
            )


class Prepared(NamedTuple):
    """A run whose data has not been read yet."""

    config: VeRLConfig
    folder: Path
    model: ModelFiles
    rewards: list[Shipped]
    agent: ShippedAgent | None
    start: int

    async def run(self, dataset: object, held_out: object, system: str | None) -> ClusterRun:
        """Read the data, make the plan, and let verl check it.

        Raises:
            ConfigError: the run cannot work on verl; the message lists every reason.
            DataError: a prompt is too long, and `on_long_prompt` is "error".
        """
        config = self.config
        if self.agent is None:
            prompts = await work(make_prompts, config, self.model, dataset, held_out, system)
        else:
            prompts = await work(make_agent_tasks, config, self.model, dataset, held_out)
        layout = Layout(
            folder=self.folder / FOLDER,
            model=self.model.path,
            prompts=len(prompts.items),
            longest_prompt=prompts.longest,
            validates=bool(prompts.held_out),
            agent=self.agent is not None,
            start=self.start,
        )
        with TemporaryDirectory(prefix="orbiter-verl-") as folder:
            # In a temporary folder, since a plan must not write into the run's.
            described = await work(describe_model, config.model, self.model, Path(folder))
            plan = await make_plan(
                config, layout, self.rewards, agent=self.agent, described=described
            )
        inputs = Inputs(self.model, prompts, self.rewards, self.agent, str(plan))
        return ClusterRun(config, layout, plan, inputs)


def prepare(
    config: VeRLConfig, rewards: Sequence[RewardSpec], output_dir: Path, agent: object = None
) -> Prepared:
    """Collect everything that a run needs, without writing anything.

    Raises:
        ConfigError: a reward or the agent cannot be sent to verl's workers.
        StorageError: the model does not exist, or the folder already holds a run.
    """
    folder = output_dir.absolute()
    return Prepared(
        config,
        folder,
        model_files(config.model, folder / FOLDER / "model"),
        ship(sendable_rewards(agent, rewards)),
        None if agent is None else ship_agent(agent),
        start_of(config, folder),
    )


def start_of(config: VeRLConfig, folder: Path) -> int:
    """Return the number of finished steps in a run's folder.

    Raises:
        StorageError: the folder already holds a run, and `resume` is off.
    """
    # verl's checkpoints, not our metrics: a step whose weights were not saved is done again.
    begun = last_checkpoint(folder / FOLDER / "checkpoints")
    if not config.resume and (begun or (folder / "metrics.jsonl").exists()):
        raise StorageError(
            f"{folder} holds a run already; set resume=True to continue it, "
            "or choose another output_dir"
        )
    return begun


def _earlier(folder: Path, start: int) -> list[dict[str, float]]:
    """Return the metrics of the steps that a resumed run does not repeat."""
    if not start:
        return []
    return [dict(row) for row in read_run(folder).metrics if row["step"] <= start]
