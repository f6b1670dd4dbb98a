"""The base class of trainers: four checks, a training and an evaluation under one lifecycle.

The training loop, checkpoints and devices belong to the subclasses.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from orbiter.train.callback import call_here
from orbiter.train.errors import CallbackError, ConfigError, StateError
from orbiter.train.trainer.config import TrainConfig
from orbiter.train.trainer.lifecycle import Lifecycle, OnStateChange, TrainerState
from orbiter.train.trainer.metrics import TrainMetrics

_Method = Callable[..., TrainMetrics | Awaitable[TrainMetrics]]

_UNDER_LIFECYCLE = "__orbiter_under_lifecycle__"


class Trainer(ABC):
    """Runs checks, training and evaluation, and moves through the states of `TrainerState`.

    A subclass implements the abstract methods, either async or not; methods that are not async run
    on the event loop's thread. It needs no `__init__`. Its `train` may call `super().train()` and
    `self.evaluate()`: they count as part of the training, and the state stays TRAINING. A `dataset`
    passed to `train()` becomes `self.dataset` before the checks run.
    """

    agent: Any = None  # a subclass may narrow the types of these attributes
    dataset: Any = None
    reward_fn: Any = None
    config: TrainConfig = TrainConfig()
    on_state_change: OnStateChange | None = None
    """Called with the old and the new state at each change; not async, fast, must not raise."""

    train_metrics: TrainMetrics | None = None
    """Metrics of the last training."""
    evaluate_metrics: TrainMetrics | None = None
    """Metrics of the last evaluation."""

    def __init__(
        self,
        agent: object = None,
        dataset: object = None,
        reward_fn: object = None,
        config: TrainConfig | None = None,
        *,
        on_state_change: OnStateChange | None = None,
    ) -> None:
        """Store the arguments; without `config`, the class's default is used."""
        self.agent, self.dataset, self.reward_fn = agent, dataset, reward_fn
        if config is not None:
            self.config = config
        if on_state_change is not None:
            self.on_state_change = on_state_change

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Wrap the subclass's `train` and `evaluate` in the lifecycle."""
        super().__init_subclass__(**kwargs)
        for name, start in (("train", _train), ("evaluate", _evaluate)):
            method = getattr(cls, name)
            # An inherited method is wrapped already; wrapping it again would run the checks twice.
            entered = getattr(method, _UNDER_LIFECYCLE, None) is method
            if not entered and not getattr(method, "__isabstractmethod__", False):
                setattr(cls, name, _under_lifecycle(name, method, start))

    @property
    def state(self) -> TrainerState:
        """Current state of this trainer."""
        return self._lifecycle.state

    @property
    def error(self) -> Exception | None:
        """The exception that led to ERROR; cleared by `reset()`."""
        return self._lifecycle.error

    @abstractmethod
    async def check_agent(self) -> bool:
        """Return whether there is an agent (or a model) that can be trained."""

    @abstractmethod
    async def check_dataset(self) -> bool:
        """Return whether the data can be trained on."""

    @abstractmethod
    async def check_reward(self) -> bool:
        """Return whether the training signal (a reward, a target) is there."""

    @abstractmethod
    async def check_config(self) -> bool:
        """Return whether the settings are consistent with each other and with the data."""

    @abstractmethod
    async def train(self) -> TrainMetrics:
        """Train, and return the metrics."""

    @abstractmethod
    async def evaluate(self) -> TrainMetrics:
        """Measure how good the agent is now."""

    async def run(self) -> TrainMetrics:
        """Validate, train and evaluate; return the metrics of the evaluation.

        The metrics of the training are in `train_metrics`.

        Raises:
            StateError: the trainer is busy, or stopped with an error.
        """
        self._lifecycle.refuse_unless_idle("run")
        await self.validate()
        await self.train()
        return await self.evaluate()

    async def validate(self) -> None:
        """Run all four checks; if they pass, the trainer is VALIDATED.

        Raises:
            ConfigError: checks returned False or raised; the message lists all of them. The
                exception that was raised, or a group of several, is its `__cause__`.
            StateError: the trainer is busy, or stopped with an error.
        """
        if self._lifecycle.is_inside():
            await self._run_checks()
            return
        with self._lifecycle.validating():
            await self._run_checks()

    def reset(self) -> None:
        """Return to CREATED from ERROR or any idle state, and clear the error."""
        self._lifecycle.reset()

    async def _run_checks(self) -> None:
        checks: tuple[Callable[[], bool | Awaitable[bool]], ...] = (
            self.check_agent,
            self.check_dataset,
            self.check_reward,
            self.check_config,
        )
        failed: list[str] = []
        raised: list[Exception] = []
        # All of them, so that several mistakes are reported at once.
        for check in checks:
            try:
                answer = await call_here(check)
            except Exception as error:
                raised.append(error)
                failed.append(f"{check.__name__} raised {type(error).__name__}: {error}")
            else:
                if not answer:
                    failed.append(f"{check.__name__} returned {answer!r}, not True")
        if failed:
            several = ExceptionGroup("checks that raised", raised) if len(raised) > 1 else None
            cause = several or next(iter(raised), None)
            raise ConfigError(
                f"{type(self).__name__} is not ready, {len(failed)} of {len(checks)} checks "
                f"failed: {'; '.join(failed)}"
            ) from cause

    @functools.cached_property
    def _lifecycle(self) -> Lifecycle:
        """The lifecycle, created at first use so that a subclass may omit `super().__init__()`."""
        return Lifecycle(self._notify)

    def _notify(self, old: TrainerState, new: TrainerState) -> None:
        if self.on_state_change is not None:
            self.on_state_change(old, new)


def _under_lifecycle(
    name: str, method: _Method, start: Callable[..., Awaitable[TrainMetrics]]
) -> _Method:
    """Wrap a method so that `start` runs it, unless it is called from within the trainer's work."""

    @functools.wraps(method)
    def entered(
        self: Trainer, *args: object, **kwargs: object
    ) -> TrainMetrics | Awaitable[TrainMetrics]:
        if not self._lifecycle.is_inside():
            # Bound here, so that a wrong argument is a TypeError at the call and not in the middle
            # of a run.
            return start(self, method, inspect.signature(method).bind(self, *args, **kwargs))
        if name == "train" and self.state is not TrainerState.TRAINING:
            raise StateError(
                f"cannot train while {self.state}: a check or an evaluation must not call train()"
            )
        return method(self, *args, **kwargs)

    # The mark is the function itself: a decorator that copies attributes must not copy the mark.
    setattr(entered, _UNDER_LIFECYCLE, entered)
    return entered


async def _train(trainer: Trainer, method: _Method, call: inspect.BoundArguments) -> TrainMetrics:
    lifecycle = trainer._lifecycle
    # Before `dataset` changes under a run in progress.
    lifecycle.refuse_unless_idle("train")
    dataset = call.arguments.get("dataset")
    if dataset is not None:
        trainer.dataset = dataset
    # An earlier validation has not seen new data.
    if dataset is not None or trainer.state is not TrainerState.VALIDATED:
        await trainer.validate()
    with lifecycle.training():
        trainer.train_metrics = await _metrics(method, call)
    return trainer.train_metrics


async def _evaluate(
    trainer: Trainer, method: _Method, call: inspect.BoundArguments
) -> TrainMetrics:
    with trainer._lifecycle.evaluating():
        trainer.evaluate_metrics = await _metrics(method, call)
    return trainer.evaluate_metrics


async def _metrics(method: _Method, call: inspect.BoundArguments) -> TrainMetrics:
    """Call the user's method and check that it returned TrainMetrics."""
    metrics = await call_here(functools.partial(method, *call.args, **call.kwargs))
    if not isinstance(metrics, TrainMetrics):
        raise CallbackError(f"{method.__qualname__} must return TrainMetrics, got {metrics!r}")
    return metrics
