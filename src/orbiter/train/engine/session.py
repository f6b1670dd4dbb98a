"""A run under way: what it stands on, where it stands, and how it gets back there after a kill.

Whoever trains by reward or by imitation takes its updates through a `Session`. All random numbers
are drawn from seeds named by step, so a position is all the random state that the engine has.
Left out: what is learned from (`verl/local.py`, `sft/local.py`) and files (`checkpoint.py`).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from orbiter.train.engine.allocator import keep_freed_memory
from orbiter.train.engine.batch import Batch
from orbiter.train.engine.checkpoint import Checkpoint, Checkpoints
from orbiter.train.engine.config import EngineConfig, settings_of
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.tasks import Tasks
from orbiter.train.engine.update import Objective, update
from orbiter.train.errors import DataError, StorageError, TrainingError
from orbiter.train.runlog import RunLog
from orbiter.train.trajectory import TrajectoryItem

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _engine_thread() -> ThreadPoolExecutor:
    """Return the one thread that touches tensors.

    Two trainers do not fight for the cores, and OpenMP has one team of threads in the process: as
    soon as a second thread has called it, libgomp lets every team sleep at each of a step's
    thousands of barriers instead of waiting for it, and sampling takes 1.4 times as long.
    """
    keep_freed_memory()  # first: glibc gives a thread its arena with the first block it asks for
    return ThreadPoolExecutor(1, thread_name_prefix="orbiter-engine")


async def work(fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run engine work on its thread, so that the event loop stays free.

    A cancellation is passed on only when the work has come to its end: nothing stays half done.
    """
    loop = asyncio.get_running_loop()
    job = loop.run_in_executor(_engine_thread(), functools.partial(fn, *args, **kwargs))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job])
        if not job.cancelled() and (failure := job.exception()):
            log.warning("the work that was under way at the cancellation failed: %s", failure)
        raise


@dataclass(slots=True)
class Position:
    """Where a run stands, as a checkpoint's JSON holds it."""

    step: int = 0
    """Steps that are over."""
    update: int = 0
    """Optimiser updates taken since the start."""
    within: int = 0
    """Updates taken of the step under way."""
    row: dict[str, float] = field(default_factory=dict[str, float])
    """What the step under way has measured before its first update."""
    seen: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """What its updates have measured, one after the other."""
    samples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What is worth looking at of it."""
    epoch: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Sum and count of every metric over the epoch under way."""
    flat_steps: int = 0
    """Steps in a row that had nothing to teach."""
    still_steps: int = 0
    """Steps in a row that had something to teach, and a gradient of exactly zero."""
    has_taught: bool = False
    """Whether any step has had something to teach."""
    best: float | None = None
    """The best result of a validation so far."""


class Session:
    """A policy in training with its optimiser, its position, its log and its checkpoints."""

    def __init__(
        self, config: EngineConfig, policy: Policy, tasks: Tasks, *, steps_per_epoch: int
    ) -> None:
        """Start the run, or take it up from its newest checkpoint where `config.resume` says so.

        Raises:
            StorageError: `output_dir` holds a run already, and `resume` is off.
            ConfigError: the run in `output_dir` has other settings.
            DataError: the run in `output_dir` learned from other data.
        """
        self.config, self.policy = config, policy
        self.steps_per_epoch = steps_per_epoch
        self.steps = config.epochs * steps_per_epoch
        """Steps of the whole run."""
        self.optimiser = make_optimiser(
            policy, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        self.position = Position()
        self.batch: Batch | None = None
        """The samples of the step under way, credited; None until they are drawn."""
        self.history: list[dict[str, float]] = []
        self.stopping = False
        """Whether the run is to end behind the step under way, as if its time were up."""
        self._data = _fingerprint(tasks.items)
        self._began = self._step_began = perf_counter()
        self._saved = (0, 0)
        """Step and update of the newest checkpoint."""
        self._checkpoints: Checkpoints | None = None
        self._log: RunLog | None = None
        if config.output_dir is not None:
            self._open(Path(config.output_dir))

    def _open(self, folder: Path) -> None:
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=self.config.keep_checkpoints)
        found = self._checkpoints.latest()
        if not self.config.resume and (found or (folder / "metrics.jsonl").exists()):
            raise StorageError(
                f"{folder} holds a run already; set resume=True to go on with it, "
                "or choose another output_dir"
            )
        if found:
            self._restore(found)
        self._log = RunLog(
            folder,
            settings_of(self.config) | {"dtype": self.policy.dtype},  # the one chosen, not "auto"
            resume_from=self.position.step,
            trackers=self.config.trackers,
            environment=self.policy.environment(),
        )

    def _restore(self, found: Checkpoint) -> None:
        state = found.state
        if state["data"] != self._data:
            raise DataError(
                f"the run in {self.config.output_dir} learned from other data; resume needs the "
                "same items in the same order"
            )
        self.policy.load_trainable(found.tensors["weights"])
        self.optimiser.load_state(found.tensors.get("optimiser", {}))
        self.position = Position(**state["position"])
        self._saved = (self.position.step, self.position.update)
        if "buffer" in found.tensors:
            self.batch = Batch(**found.tensors["buffer"]).to(self.policy.device)
        version, internal, gauss = state["random"]
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(found.tensors["rng"]["torch"])
        log.info("going on at step %d, update %d", self.position.step, self.position.update)

    def take(self, batch: Batch, objective: Objective, *, temperature: float = 1.0) -> None:
        """Take one optimiser update and note what it measured.

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
            require_finite(self.policy)
        except TrainingError as error:
            raise self.explain(error) from error
        seen["learning_rate"] = self.optimiser.learning_rate
        position.seen.append(seen)
        position.within += 1
        position.update += 1

    def _learning_rate(self) -> float:
        """Return that of the next update: warm-up by updates, then constant or down by steps."""
        config, position = self.config, self.position
        warm_up = min(1.0, (position.update + 1) / max(1, config.warmup_steps))
        left = 1 - position.step / self.steps if config.lr_schedule == "linear" else 1.0
        return config.learning_rate * warm_up * left

    def explain(self, error: TrainingError) -> TrainingError:
        """Say where the run diverged, and what it looked like just before."""
        before = self.history[-1] if self.history else {}
        names = ("loss", "reward", "grad_norm", "kl", "approx_kl", "entropy")
        story = ", ".join(f"{name} {before[name]:.3g}" for name in names if name in before)
        return TrainingError(
            f"step {self.position.step + 1}: {error} [learning_rate={self.config.learning_rate:g}, "
            f"the likeliest cause, max_grad_norm={self.config.max_grad_norm:g}; "
            f"the step before: {story or 'none'}]"
        )

    def finish_step(self, further: Mapping[str, float]) -> dict[str, float]:
        """Close the step under way: its metrics go to the log, and the position moves on.

        How long it took stands apart from the metrics, which are the same for every run of a seed.
        """
        position = self.position
        row = mean_of(position.seen) | position.row | dict(further)
        if position.step % self.steps_per_epoch == 0:
            position.epoch = {}
        for name, value in row.items():
            total, count = position.epoch.get(name, [0.0, 0])
            position.epoch[name] = [total + value, count + 1]
        position.step += 1
        if self._log is not None:
            self._log.write(position.step, row)
            for sample in position.samples:
                self._log.sample(position.step, sample)
        position.within, position.row, position.seen, position.samples = 0, {}, [], []
        self.batch = None
        seconds, self._step_began = perf_counter() - self._step_began, perf_counter()
        clock = {"seconds": seconds, "tokens_per_second": row.get("tokens", 0) / seconds}
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
        """Mean of every metric over the steps of the epoch under way, or the last one."""
        return {name: total / count for name, (total, count) in self.position.epoch.items()}

    @property
    def save_due(self) -> bool:
        """Whether so many updates have been taken that a checkpoint is wanted."""
        every, taken = self.config.save_every, self.position.update
        return every > 0 and taken - self._saved[1] >= every

    def save(self) -> None:
        """Write a checkpoint from which the run goes on as if nothing had happened."""
        place = (self.position.step, self.position.update)
        if self._checkpoints is None or place == self._saved:
            return
        tensors: dict[str, Mapping[str, Tensor]] = {
            "weights": {n: p.detach() for n, p in self.policy.named_trainable().items()},
            "optimiser": self.optimiser.state(),
            "rng": {"torch": torch.get_rng_state()},
        }
        if self.batch is not None:
            streams = {name: getattr(self.batch, name) for name in Batch.__dataclass_fields__}
            tensors["buffer"] = {name: t for name, t in streams.items() if t is not None}
        version, internal, gauss = random.getstate()
        state = {
            "position": asdict(self.position),
            "data": self._data,
            "random": [version, list(internal), gauss],
        }
        self._checkpoints.save(self.position.update, tensors=tensors, state=state)
        self._saved = place

    def close(self) -> None:
        """Let go of the run's folder."""
        if self._log is not None:
            self._log.close()


def require_finite(policy: Policy) -> None:
    """Refuse weights that are no longer numbers.

    Raises:
        TrainingError: names the first tensor that holds NaN or an infinity.
    """
    named = policy.named_trainable()
    sums = torch.stack([p.detach().sum() for p in named.values()])
    if not bool(torch.isfinite(sums).all()):
        place = int((~torch.isfinite(sums)).nonzero()[0])
        raise TrainingError(f"the weights {list(named)[place]} are no longer finite")


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the rows that measured it."""
    names = dict.fromkeys(name for row in rows for name in row)
    held = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in held.items()}


def _fingerprint(items: Sequence[TrajectoryItem]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        digest.update(item.id.encode())
    return digest.hexdigest()
