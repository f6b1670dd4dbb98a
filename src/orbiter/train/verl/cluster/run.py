"""The same job for verl on Ray: files written, verl's own entry point run, its results taken back.

Everything that this package knows of how verl is run stands here and in the `cluster_*` files
beside it, as text: keys, names, commands. What imports verl runs in verl's own interpreter
(`inside/`, `cpu/`). Left out: the algorithms, which are verl's.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

from orbiter.train.engine.config import settings_of
from orbiter.train.engine.progress import Progress
from orbiter.train.engine.session import work
from orbiter.train.errors import CallbackError, StorageError, TrainingError
from orbiter.train.runlog import RunLog, read_run
from orbiter.train.verl.cluster.data import (
    ModelFiles,
    describe_model,
    make_prompts,
    model_files,
)
from orbiter.train.verl.cluster.files import Inputs, write_files
from orbiter.train.verl.cluster.follow import Step, Tail, first_fault, groups_of
from orbiter.train.verl.cluster.inside.reward import FAULTS
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.merge import last_checkpoint, merge
from orbiter.train.verl.cluster.metrics import OWN, as_row
from orbiter.train.verl.cluster.plan import Plan, interpreter, make_plan
from orbiter.train.verl.cluster.process import Child, last_lines
from orbiter.train.verl.cluster.rewards import Shipped, ship
from orbiter.train.verl.config import VeRLAlgorithm, VeRLConfig
from orbiter.train.verl.reward import RewardSpec
from orbiter.train.verl.samples import GROUPS_KEPT

log = logging.getLogger(__name__)

FOLDER, FINAL = "verl", "final"
"""In a run's folder: what the job reads and writes, and the trained model."""
LOOKING_SECONDS = 0.2
"""How often the job's files are looked at."""
PLACE = ("ray_address", "verl_python", "step_timeout_seconds")
"""Settings that say where and not what: a resumed run may change them."""
APART = ("step", "seconds", "tokens_per_second")
"""What stands in the history beside the metrics."""


@dataclass(slots=True)
class Run:
    """One run on verl, from its files to the trained model."""

    config: VeRLConfig
    layout: Layout
    plan: Plan
    inputs: Inputs
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """The metrics of every step so far."""
    stopping: bool = False
    """Whether the job is to end behind the step under way."""
    flat_steps: int = 0
    has_taught: bool = False
    _sampled: int = 0
    """The last step whose samples are in the log."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.layout.folder.parent

    @property
    def job_log(self) -> Path:
        """Everything that the job says."""
        return self.layout.folder / "job.log"

    @property
    def steps_done(self) -> int:
        """Steps that are over."""
        return int(self.history[-1]["step"]) if self.history else self.layout.start

    async def train(self, progress: Progress) -> Path:
        """Run the job to its end and return the folder of the trained model.

        Raises:
            CallbackError: a reward failed in a worker; the job is stopped.
            TrainingError: the job failed, or no step came in time; shows the job's last lines.
        """
        settings = {k: v for k, v in settings_of(self.config).items() if k not in PLACE}
        with RunLog(
            self.folder,
            settings,
            resume_from=self.layout.start,
            trackers=self.config.trackers,
        ) as run_log:
            self.history += _earlier(self.folder, self.layout.start)
            await work(write_files, self.config, self.layout, self.inputs)
            if self.layout.start < self.plan.steps:
                async with self._job() as job:
                    await self._follow(job, run_log, progress)
        return await merge(self.config, self.layout, self.folder / FINAL)

    def means(self) -> dict[str, float]:
        """Return the mean of every metric over the last epoch."""
        per_epoch = max(1, self.plan.steps // self.config.epochs)
        begun = (self.steps_done - 1) // per_epoch * per_epoch
        rows = [row for row in self.history if row["step"] > begun]
        names = dict.fromkeys(name for row in rows for name in row)
        names = {name: None for name in names if not name.startswith(OWN) and name not in APART}
        return {name: fmean(row[name] for row in rows if name in row) for name in names}

    def _job(self) -> Child:
        """Return the job as a child: verl itself, or what submits it to a cluster."""
        hydra = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
        command = [*self.plan.command, *hydra]
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
            "submission_id": f"orbiter-{uuid.uuid4().hex[:12]}",
            "command": shlex.join(["python", *command[1:]]),
            "environment": dict(self.plan.environment),
        }
        return Child(
            [interpreter(self.config), "-m", "orbiter.train.verl.cluster.inside.submit"],
            log=self.job_log,
            folder=folder,
            environment=inherited,
            stdin=json.dumps(request) + "\n",
        )

    async def _follow(self, job: Child, run_log: RunLog, progress: Progress) -> None:
        """Take in each step as it ends, until the job has; no wait is without an end."""
        tail, until = Tail(self.layout.metrics_file), monotonic() + self._patience
        while True:
            ended = await job.wait(LOOKING_SECONDS)
            for step in tail.new():
                self._take(step, run_log, progress)
                until = monotonic() + self._patience
            self._raise_fault()
            if ended or (self.stopping and self.steps_done > self.layout.start):
                break
            if monotonic() > until:
                raise TrainingError(
                    f"no step ended within step_timeout_seconds={self._patience:g}; the job was "
                    f"stopped behind step {self.steps_done}. {self._last_words()}"
                )
        if not self.stopping and (job.code or self.steps_done < self.plan.steps):
            raise TrainingError(
                f"verl ended with code {job.code} behind step {self.steps_done} of "
                f"{self.plan.steps}. {self._last_words()}"
            )
        self._note_samples(run_log, self.steps_done + 1)

    @property
    def _patience(self) -> float:
        return self.config.step_timeout_seconds

    def _last_words(self) -> str:
        return f"The end of {self.job_log}:\n{last_lines(self.job_log)}"

    def _raise_fault(self) -> None:
        fault = first_fault(self.layout.folder / FAULTS)
        if fault is not None:
            raise CallbackError(f"in verl's worker, {fault}")

    def _take(self, step: Step, run_log: RunLog, progress: Progress) -> None:
        """Put one step into the run's folder, the history and the bar."""
        row = as_row(step.data, self.config.algorithm)
        run_log.write(step.number, row.metrics)
        run_log.time(step.number, row.clock)
        self._note_samples(run_log, step.number)
        self.history.append({"step": step.number, **row.metrics, **row.clock})
        progress.step(step.number, row.metrics | row.clock)
        self._watch(row.metrics)

    def _note_samples(self, run_log: RunLog, before: int) -> None:
        """Keep the samples of all steps before this one: verl writes them a moment later."""
        for number in range(max(self._sampled, self.layout.start) + 1, before):
            dump = self.layout.samples / f"{number}.jsonl"
            if dump.exists():
                for group in groups_of(dump)[:GROUPS_KEPT]:
                    run_log.sample(number, group)
                dump.unlink()
            self._sampled = number

    def _watch(self, metrics: dict[str, float]) -> None:
        """End a run that never had anything to learn from.

        Raises:
            TrainingError: for `max_flat_steps` steps every sample has been worth the same.
        """
        if self.config.algorithm is VeRLAlgorithm.PPO:
            flat = metrics.get("reward_std") == 0
        else:
            ends = [metrics.get(f"verl/critic/advantages/{end}") for end in ("min", "max")]
            flat = ends == [0, 0]
        self.flat_steps = self.flat_steps + 1 if flat else 0
        self.has_taught |= not flat
        if self.flat_steps >= self.config.max_flat_steps and not self.has_taught:
            raise TrainingError(
                f"nothing can be learned: in all {self.flat_steps} steps so far every sample of a "
                f"prompt was worth the same (lately {metrics.get('reward', 0.0):.4g}). Make the "
                "reward tell better from worse, sample more (group_size, temperature), or begin "
                "with easier prompts; max_flat_steps sets how long this is watched"
            )


class Prepared(NamedTuple):
    """What is known of a run before its data is looked at."""

    config: VeRLConfig
    folder: Path
    model: ModelFiles
    rewards: list[Shipped]
    start: int

    async def run(self, dataset: object, held_out: object, system: str | None) -> Run:
        """Look at the data, make the plan, and let verl check it.

        Raises:
            ConfigError: the run cannot work on verl; the message lists every reason.
            DataError: a prompt is too long, and `on_long_prompt` is "error".
        """
        config = self.config
        prompts = await work(make_prompts, config, self.model, dataset, held_out, system)
        layout = Layout(
            folder=self.folder / FOLDER,
            model=self.model.path,
            prompts=len(prompts.items),
            longest_prompt=prompts.longest,
            validates=bool(prompts.held_out),
            start=self.start,
        )
        with TemporaryDirectory(prefix="orbiter-verl-") as folder:
            described = await work(describe_model, config.model, self.model, Path(folder))
            plan = await make_plan(config, layout, self.rewards, described=described)
        inputs = Inputs(self.model, prompts, self.rewards, str(plan))
        return Run(config, layout, plan, inputs)


def prepare(config: VeRLConfig, rewards: Sequence[RewardSpec], place: Path) -> Prepared:
    """Find what a run needs, and refuse what cannot be; writes nothing.

    Raises:
        ConfigError: a reward cannot be sent to verl's workers.
        StorageError: there is no such model, or a run in `place` already.
    """
    folder = place.absolute()
    return Prepared(
        config,
        folder,
        model_files(config.model, folder / FOLDER / "model"),
        ship(rewards),
        start_of(config, folder),
    )


def start_of(config: VeRLConfig, folder: Path) -> int:
    """Return the steps that are over in a run's folder.

    Raises:
        StorageError: there is a run already, and `resume` is off.
    """
    begun = last_checkpoint(folder / FOLDER / "checkpoints")
    if not config.resume and (begun or (folder / "metrics.jsonl").exists()):
        raise StorageError(
            f"{folder} holds a run already; set resume=True to go on with it, "
            "or choose another output_dir"
        )
    return begun


def _earlier(folder: Path, start: int) -> list[dict[str, float]]:
    """Return the metrics of the steps that a resumed run does not take again."""
    if not start:
        return []
    return [dict(row) for row in read_run(folder).metrics if row["step"] <= start]
