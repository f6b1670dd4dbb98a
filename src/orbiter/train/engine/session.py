"""The state of a training run, and how it is restored after an interruption.

Both RL and SFT take their updates through a `Session`. All random numbers are drawn from seeds
derived from the step, so the position is the engine's entire random state. The data to learn from
is prepared in `verl/local.py` and `sft/local.py`; files are written by `checkpoint.py`.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.checkpoint import Checkpoint, Checkpoints
from orbiter.train.engine.config import EngineConfig, settings_of
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.progress import line_of
from orbiter.train.engine.tasks import Tasks
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import Objective, update
from orbiter.train.errors import DataError, StorageError, TrainingError
from orbiter.train.progress import Progress
from orbiter.train.runlog import RunLog
from orbiter.train.trajectory import TrajectoryItem

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Position:
    """The progress of a run, stored as JSON in a checkpoint."""

    step: int = 0
    """Number of finished steps."""
    update: int = 0
    """Optimiser updates taken since the start."""
    within: int = 0
    """Updates taken in the current step."""
    row: dict[str, float] = field(default_factory=dict[str, float])
    """Metrics of the current step that were measured before its first update."""
    seen: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """Metrics of each update in the current step, in order."""
    samples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Example answers of the current step, for the log."""
    epoch: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Sum and count of every metric over the current epoch."""
    flat_steps: int = 0
    """Consecutive steps without any advantage to learn from."""
    still_steps: int = 0
    """Consecutive steps that had advantages but a gradient of exactly zero."""
    has_taught: bool = False
    """Whether any step has had advantages to learn from."""
    best: float | None = None
    """The best validation result so far."""
    watched: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Metrics of the first and of the latest steps, for the warnings of `verl/guard.py`."""
    pools: dict[str, str] = field(default_factory=dict[str, str])
    """The tasks that all samples solved or failed at last, by number; see `verl/pools.py`."""
    cursor: int = 0
    """Turns of tasks that have been given out, where there are pools."""
    warned: list[str] = field(default_factory=list[str])
    """The warnings that hold at present."""
    gold: list[list[Any]] = field(default_factory=list[list[Any]])
    """Both rewards on the gold slice at each measurement, for the alarm of `verl/gold.py`."""
    alarms: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The alarms that were raised."""


class Session:
    """A policy in training with its optimiser, its position, its log and its checkpoints."""

    def __init__(
        self, config: EngineConfig, policy: Policy, tasks: Tasks, *, steps_per_epoch: int
    ) -> None:
        """Start the run, or restore its newest checkpoint if `config.resume` is set.

        Raises:
            StorageError: `output_dir` already holds a run, and `resume` is off.
            ConfigError: the run in `output_dir` has other settings.
            DataError: the run in `output_dir` learned from other data.
        """
        self.config, self.policy = config, policy
        self.steps_per_epoch = steps_per_epoch
        self.steps = config.epochs * steps_per_epoch
        """Number of steps in the whole run."""
        self.optimiser = make_optimiser(
            policy, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        self.position = Position()
        self.batch: Batch | None = None
        """Samples of the current step with their advantages; None until they are drawn."""
        self.history: list[dict[str, float]] = []
        self.also_timed: Callable[[], Mapping[str, float]] = dict
        """Numbers to record beside the timings of a step, such as the cost of a judge."""
        self.stopping = False
        """Whether the run ends after the current step, as it does at its time limit."""
        # Compared at resume, because the position is an index into exactly these items.
        self._data = _fingerprint(tasks.items)
        self._began = self._step_began = perf_counter()
        self._saved = (0, 0)
        """Step and update of the newest checkpoint."""
        self._checkpoints: Checkpoints | None = None
        self._log: RunLog | None = None
        if config.output_dir is not None:
            self._open(Path(config.output_dir))

    def _open(self, folder: Path) -> None:
        # Opening sweeps unfinished checkpoints that a killed process left.
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=self.config.keep_checkpoints)
        checkpoint = self._checkpoints.latest()
        # Starting over in the same folder would mix two runs in one log.
        if not self.config.resume and (checkpoint or (folder / "metrics.jsonl").exists()):
            raise StorageError(
                f"{folder} holds a run already; set resume=True to continue it, "
                "or choose another output_dir"
            )
        if checkpoint:
            self._restore(checkpoint)
        self._log = RunLog(
            folder,
            # A resumed run must not choose another dtype on another machine.
            settings_of(self.config) | {"dtype": self.policy.dtype},  # the one chosen, not "auto"
            # The log drops rows after this step: they belong to updates that the checkpoint does
            # not have.
            resume_from=self.position.step,
            trackers=self.config.trackers,
            environment=self.policy.environment(),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        # Compared before anything is loaded: the position counts items of this very data.
        if state["data"] != self._data:
            raise DataError(
                f"the run in {self.config.output_dir} learned from other data; resume needs the "
                "same items in the same order"
            )
        self.policy.load_trainable(checkpoint.tensors["weights"])
        self.optimiser.load_state(checkpoint.tensors.get("optimiser", {}))
        self.position = Position(**state["position"])
        self._saved = (self.position.step, self.position.update)
        # The samples of a step that was interrupted between two updates; they must not be drawn
        # again.
        if "buffer" in checkpoint.tensors:
            self.batch = Batch(**checkpoint.tensors["buffer"]).to(self.policy.device)
        # The engine draws from seeds, but the user's rewards may use the global generators.
        version, internal, gauss = state["random"]
        random.setstate((version, tuple(internal), gauss))
        # A generator's state is a byte tensor, which must stay on the CPU.
        torch.set_rng_state(checkpoint.tensors["rng"]["torch"])
        log.info("resuming at step %d, update %d", self.position.step, self.position.update)

    def take(self, batch: Batch, objective: Objective, *, temperature: float = 1.0) -> None:
        """Take one optimiser update and record its metrics.

        Raises:
            TrainingError: loss, gradient or weights are not finite; names the likely cause.
        """
        config, position = self.config, self.position
        self.optimiser.learning_rate = self._learning_rate()
        try:
            seen = update(
                self.policy,
                batch,
                self.optimiser,
                objective,
                max_grad_norm=config.max_grad_norm,
                temperature=temperature,
                micro_batch_tokens=config.micro_batch_tokens,
            )
            # AdamW itself can overflow a weight even if the gradient is finite.
            require_finite(self.policy)
        except TrainingError as error:
            raise self.explain(error) from error
        seen["learning_rate"] = self.optimiser.learning_rate
        position.seen.append(seen)
        position.within += 1
        position.update += 1

    def _learning_rate(self) -> float:
        """Return the next update's learning rate: warm-up, then constant or linear decay.

        Warm-up counts updates; the decay counts steps.
        """
        config, position = self.config, self.position
        # Plus one, so that the first update already moves the weights.
        warm_up = min(1.0, (position.update + 1) / max(1, config.warmup_steps))
        left = 1 - position.step / self.steps if config.lr_schedule == "linear" else 1.0
        return config.learning_rate * warm_up * left

    def explain(self, error: TrainingError) -> TrainingError:
        """Return an error that says where the run diverged and lists the last step's metrics."""
        before = self.history[-1] if self.history else {}
        names = ("loss", "reward", "grad_norm", "kl", "divergence", "approx_kl", "entropy")
        story = ", ".join(f"{name} {before[name]:.3g}" for name in names if name in before)
        return TrainingError(
            f"step {self.position.step + 1}: {error} [learning_rate={self.config.learning_rate:g}, "
            f"the likeliest cause, max_grad_norm={self.config.max_grad_norm:g}; "
            f"the step before: {story or 'none'}]"
        )

    def finish_step(self, further: Mapping[str, float]) -> dict[str, float]:
        """Finish the current step: log its metrics and advance the position.

        Timings are logged separately from the metrics, which are the same for every run of a seed.
        """
        position = self.position
        # Later dicts win: a metric of the whole step replaces the mean over its updates.
        row = mean_of(position.seen) | position.row | dict(further)
        # The first step of an epoch; the sums of the last one are kept until here for the model
        # card.
        if position.step % self.steps_per_epoch == 0:
            position.epoch = {}
        for name, value in row.items():
            total, count = position.epoch.get(name, [0.0, 0])
            position.epoch[name] = [total + value, count + 1]
        # Advanced before the log is written, whose rows count finished steps.
        position.step += 1
        if self._log is not None:
            self._log.write(position.step, row)
            for sample in position.samples:
                self._log.sample(position.step, sample)
        position.within, position.row, position.seen, position.samples = 0, {}, [], []
        # The next step draws new samples; a checkpoint from here on has no buffer.
        self.batch = None
        seconds, self._step_began = perf_counter() - self._step_began, perf_counter()
        clock = {"seconds": seconds, "tokens_per_second": row.get("tokens", 0) / seconds}
        clock |= self.also_timed()
        if self._log is not None:
            self._log.time(position.step, clock)
        self.history.append({"step": position.step, **row, **clock})
        return row | clock

    @property
    def out_of_time(self) -> bool:
        """Whether this process has trained for `max_seconds`, or was asked to stop."""
        limit = self.config.max_seconds
        return self.stopping or (limit is not None and perf_counter() - self._began >= limit)

    @property
    def epoch_means(self) -> dict[str, float]:
        """Mean of every metric over the steps of the current epoch, or of the last one."""
        return {name: total / count for name, (total, count) in self.position.epoch.items()}

    @property
    def saved_step(self) -> int:
        """Number of finished steps at the newest checkpoint."""
        return self._saved[0]

    @property
    def save_due(self) -> bool:
        """Whether `save_every` updates have been taken since the last checkpoint."""
        every, taken = self.config.save_every, self.position.update
        return every > 0 and taken - self._saved[1] >= every

    def save(self) -> None:
        """Write a checkpoint that the run can resume from as if it had not been interrupted."""
        # Step and update, because a save within a step and one after it are different points.
        now = (self.position.step, self.position.update)
        if self._checkpoints is None or now == self._saved:
            return
        tensors: dict[str, Mapping[str, Tensor]] = {
            "weights": {n: p.detach() for n, p in self.policy.named_trainable().items()},
            "optimiser": self.optimiser.state(),
            "rng": {"torch": torch.get_rng_state()},
        }
        if self.batch is not None:
            streams = {name: getattr(self.batch, name) for name in Batch.__dataclass_fields__}
            tensors["buffer"] = {name: t for name, t in streams.items() if t is not None}
        # JSON has no tuples, which random.setstate insists on; `_restore` converts the list back.
        version, internal, gauss = random.getstate()
        state = {
            "position": asdict(self.position),
            "data": self._data,
            "random": [version, list(internal), gauss],
        }
        self._checkpoints.save(self.position.update, tensors=tensors, state=state)
        # Only after the checkpoint is on disk, so that a failed save is tried again.
        self._saved = now

    def close(self) -> None:
        """Close the run's log and release its folder."""
        if self._log is not None:
            self._log.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """The parts that every training loop needs; each method adds its data."""

    session: Session
    progress: Progress
    validate: Callable[[int], Awaitable[Mapping[str, float]]]
    """Called with the number of finished steps; returns a validation's metrics, or nothing."""

    async def end_step(self) -> bool:
        """Validate, log and show the current step; save if it is time; return whether to stop."""
        session = self.session
        # Validation comes before the step is finished, so that its metrics belong to this step's
        # row.
        row = session.finish_step(await self.validate(session.position.step + 1))
        self.progress.update(session.position.step, line_of(row))
        if session.save_due:
            await work(session.save)
        return session.out_of_time


def require_finite(policy: Policy) -> None:
    """Check that all trained weights are finite.

    Raises:
        TrainingError: a tensor holds NaN or an infinity; the message names the first one.
    """
    named = policy.named_trainable()
    # A sum is NaN or infinite if any element is, and costs one number per tensor.
    sums = torch.stack([p.detach().sum() for p in named.values()])
    if not bool(torch.isfinite(sums).all()):
        index = int((~torch.isfinite(sums)).nonzero()[0])
        raise TrainingError(f"the weights {list(named)[index]} are no longer finite")


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    held = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in held.items()}


def _fingerprint(items: Sequence[TrajectoryItem]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    # The ids suffice: an item's id is a hash of its content.
    for item in items:
        digest.update(item.id.encode())
    return digest.hexdigest()
