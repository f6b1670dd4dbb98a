"""The evolution of a population of candidates, from the first evaluation to the result."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from orbiter.train.callback import call
from orbiter.train.errors import ConfigError, DataError, StateError, boundary
from orbiter.train.evolution.budget import Budget
from orbiter.train.evolution.config import EvolutionConfig, EvolutionPhase, StopReason
from orbiter.train.evolution.evaluator import Referee
from orbiter.train.evolution.event import listeners
from orbiter.train.evolution.generation import run_generations
from orbiter.train.evolution.journal import FileJournal
from orbiter.train.evolution.member import Member, mean_score, ranked
from orbiter.train.evolution.result import Baseline, EvolutionResult, interval_of
from orbiter.train.evolution.state import State
from orbiter.train.evolution.steady import run_steadily
from orbiter.train.evolution.strategy import EvolutionStrategy, Score, as_score

C = TypeVar("C")


class Rival(Protocol[C]):
    """Makes a simpler search of the same candidates: `BestOfN`, `RandomSearch`, or your own."""

    def __call__(
        self, strategy: EvolutionStrategy[C], initial: Sequence[C], /
    ) -> EvolutionStrategy[C]:
        """Return the strategy of the simpler search."""


class EvolutionPipeline(Generic[C]):
    """Improves candidates by evaluating, selecting and mutating them, epoch by epoch.

    An epoch evaluates what is new and selects; the next one fills the free places with mutated
    children first. Every candidate ever made is scored, and the best one is never lost.
    """

    def __init__(
        self,
        config: EvolutionConfig,
        strategy: EvolutionStrategy[C],
        *,
        holdout: Callable[[C], float | Score | Awaitable[float | Score]] | None = None,
        baseline: Rival[C] | None = None,
    ) -> None:
        """Set up an evolution.

        Args:
            config: how long, how wide, how hard.
            strategy: the user's `evaluate` and `mutate`.
            holdout: scores the best candidate once, at the end, on what the search never saw.
            baseline: a simpler search, `BestOfN` or `RandomSearch`, which then runs on the same
                initial candidates for as many evaluations (and as much cost) as were used.
        """
        if not isinstance(strategy, EvolutionStrategy):
            raise ConfigError(
                f"strategy must be an EvolutionStrategy, got {type(strategy).__name__}"
            )
        self.config = config
        self.strategy = strategy
        self._holdout = holdout
        self._baseline = baseline
        self._state: State[C] | None = None

    @property
    def phase(self) -> EvolutionPhase:
        """Where the evolution stands."""
        return EvolutionPhase.INIT if self._state is None else self._state.phase

    async def run(self, initial_population: Iterable[C]) -> EvolutionResult[C]:
        """Evolve `initial_population`, which is neither modified nor kept.

        Shorter than `population_size`, it is filled up with mutated children before the first
        epoch; longer, all of it is evaluated once. With `run_dir`, a run that was interrupted goes
        on where it stopped: nothing that was evaluated or mutated is paid for again.

        Raises:
            DataError: the population is empty.
            CallbackError: every mutation of an epoch failed, or one did with on_error="raise".
            TrainingError: every evaluation of an epoch failed.
            ConfigError: `run_dir` holds the journal of another run.
            StateError: the pipeline is running already.
        """
        if self.phase not in (EvolutionPhase.INIT, EvolutionPhase.COMPLETE):
            raise StateError(f"this pipeline is {self.phase}: await its run, or make another one")
        state = State(self.config, self.strategy, Budget(self.config))
        self._state = state
        state.listeners = listeners(self.config.on_event, self.config.epochs)
        try:
            initial = self._initial(state, initial_population)
            self._open_journal(state, initial)
            population = await self._evolve(state, initial)
            result = await self._result(state, initial, population)
        except BaseException:
            self._state = None  # whatever ended it, the pipeline can be run again
            raise
        finally:
            state.journal.close()
            for listener in state.listeners:
                listener.close()
        if self._baseline is None:
            return result
        rival = await self._compete(self._baseline, result, [m.candidate for m in initial])
        return replace(result, baseline=rival)

    async def _compete(
        self, rival: Rival[C], result: EvolutionResult[C], initial: list[C]
    ) -> Baseline:
        """Run the baseline on an equal budget, in a folder of its own."""
        folder = self.config.run_dir
        config = replace(
            self.config,
            epochs=max(1, result.evaluations),
            max_evaluations=max(1, result.evaluations),
            max_cost=result.cost or None,
            mode="generation",
            patience=None,
            run_dir=None if folder is None else Path(folder) / "baseline",
            on_event=None,
        )
        other = await EvolutionPipeline(config, rival(self.strategy, initial)).run(initial)
        name = getattr(rival, "__name__", type(rival).__name__)
        return Baseline(name, other.best_score, other.best_interval, other.evaluations)

    def _initial(self, state: State[C], population: Iterable[C]) -> list[Member[C]]:
        members = []
        for candidate in population:
            key, _ = state.identify(candidate)
            members.append(state.admit(candidate, key, origin="initial"))
        if not members:
            raise DataError("the initial population is empty: there is nothing to evolve from")
        return members

    def _open_journal(self, state: State[C], initial: list[Member[C]]) -> None:
        if self.config.run_dir is not None:
            fingerprint = _fingerprint(self.config, self.strategy, initial)
            texts = [state.codec.write(member.candidate) for member in initial]
            state.journal = FileJournal(Path(self.config.run_dir), fingerprint, texts)

    async def _evolve(self, state: State[C], initial: list[Member[C]]) -> list[Member[C]]:
        if self.config.epochs == 0:
            state.stop = StopReason.EPOCHS
            return initial
        if self.config.mode == "steady":
            return await run_steadily(state, initial)
        return await run_generations(state, initial)

    async def _result(
        self, state: State[C], initial: list[Member[C]], population: list[Member[C]]
    ) -> EvolutionResult[C]:
        assert state.stop is not None
        best = state.best
        scores = best.scores if best else []
        if best and self.config.confirm:
            scores = await Referee(state).confirm(best) or scores
        state.enter(EvolutionPhase.COMPLETE)
        state.tell("stop", message=str(state.stop))
        return EvolutionResult(
            best=best.candidate if best else None,
            best_score=mean_score(scores),
            best_interval=interval_of(scores) if best else None,
            baseline=_of_first_epoch(state),
            initial_score=max((m.score for m in initial if m.scores), default=math.nan),
            epochs_completed=len(state.history),
            evaluations=state.budget.evaluations,
            cache_hits=state.cache_hits,
            failures=state.failures,
            cost=state.budget.cost,
            stop_reason=state.stop,
            history=tuple(state.history),
            population=tuple(m.candidate for m in population),
            holdout_score=await self._held_out(best) if best else None,
            members=tuple(state.members),
        )

    async def _held_out(self, best: Member[C]) -> float | None:
        if self._holdout is None:
            return None
        with boundary("holdout"):
            return as_score(await call(self._holdout, best.candidate)).value


def _of_first_epoch(state: State[C]) -> Baseline:
    """Return the best of the initial candidates and their first variants: best-of-N for nothing."""
    first = [m for m in state.members if m.epoch == 1 and m.error is None and m.scores]
    if not first:
        return Baseline("best of the first epoch", math.nan, None, 0)
    best = ranked(first)[0]
    return Baseline("best of the first epoch", best.score, interval_of(best.scores), len(first))


def _fingerprint(
    config: EvolutionConfig, strategy: EvolutionStrategy[C], initial: list[Member[C]]
) -> dict[str, Any]:
    """Say what must be the same for a journal to be this run's: values and names, never source.

    Limits (epochs, target, budgets) and speed (concurrency, timeout) may change, so that a run
    can be prolonged or hurried.
    """
    names = (
        "seed population_size selection_ratio mutation_rate crossover_rate elite replicates "
        "contenders mode"
    )
    kind = type(strategy)
    return {
        **{name: getattr(config, name) for name in names.split()},
        "strategy": f"{kind.__module__}.{kind.__qualname__}",
        "initial": [member.key for member in initial],
    }
