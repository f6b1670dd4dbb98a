"""The evolution of a population of candidates, from the first evaluation to the result."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from orbiter.train.callback import call
from orbiter.train.errors import ConfigError, DataError, StateError, boundary
from orbiter.train.evolution.budget import EvaluationBudget
from orbiter.train.evolution.config import EvolutionConfig, StopReason
from orbiter.train.evolution.evaluator import Evaluator
from orbiter.train.evolution.event import EvolutionPhase, listeners
from orbiter.train.evolution.generation import run_generations
from orbiter.train.evolution.journal import FileRunJournal, HeldOut
from orbiter.train.evolution.member import Member, mean_score, ranked
from orbiter.train.evolution.result import Baseline, EvolutionResult, interval_of
from orbiter.train.evolution.state import State
from orbiter.train.evolution.steady import run_steadily
from orbiter.train.evolution.strategy import EvolutionStrategy, Score, as_score
from orbiter.train.fingerprint import digest_with_data

C = TypeVar("C")


class Rival(Protocol[C]):
    """A factory for a simpler search: `BestOfN`, `RandomSearch`, or your own."""

    def __call__(
        self, strategy: EvolutionStrategy[C], initial: Sequence[C], /
    ) -> EvolutionStrategy[C]:
        """Return the strategy of the simpler search."""


class EvolutionPipeline(Generic[C]):
    """Improves candidates by evaluating, selecting and mutating them, epoch by epoch.

    An epoch evaluates the new candidates and selects; the next one first fills the population up
    with mutated children. Every candidate ever made is scored, and the best one is never lost.
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
            config: the settings of the search.
            strategy: the user's `evaluate` and `mutate`.
            holdout: scores the best candidate once, at the end, on data that the search did not
                use. With `run_dir`, its score is kept; a run that is started again calls it only
                if the best candidate, its code or the data that it refers to have changed.
            baseline: a simpler search, `BestOfN` or `RandomSearch`, which is then run on the same
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
        """The current phase of the evolution."""
        return EvolutionPhase.INIT if self._state is None else self._state.phase

    async def run(self, initial_population: Iterable[C]) -> EvolutionResult[C]:
        """Evolve `initial_population`, which is neither modified nor kept.

        If it is shorter than `population_size`, it is filled up with mutated children before the
        first epoch; if it is longer, all of it is evaluated once. With `run_dir`, an interrupted
        run continues where it stopped: finished evaluations and mutations are not paid for again,
        and failed ones are tried again. A run that fails after a first success ends with its best
        candidate so far; `stop_reason` and `stop_cause` say why.

        Raises:
            DataError: the population is empty, or holds None.
            CallbackError: no mutation ever succeeded, or one failed with on_error="raise".
            TrainingError: every evaluation of the first epoch failed.
            ConfigError: `run_dir` holds the journal of another run.
            StateError: the pipeline is running already.
        """
        # Concurrent runs would share the strategy's state.
        if self.phase not in (EvolutionPhase.INIT, EvolutionPhase.COMPLETE):
            raise StateError(
                f"this pipeline is {self.phase}: await its run, or create another pipeline"
            )
        state = State(self.config, self.strategy, EvaluationBudget(self.config))
        state.limiter = asyncio.Semaphore(self.config.concurrency)
        self._state = state
        state.listeners = listeners(self.config.on_event, self.config.epochs)
        try:
            initial = self._initial(state, initial_population)
            self._open_journal(state, initial)
            population = await self._evolve(state, initial)
            result = await self._result(state, initial, population)
        except BaseException:
            # Only then: a finished pipeline reports its last phase.
            self._state = None  # the pipeline can be run again, however this run ended
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
        """Run the baseline on an equal budget, in a subfolder."""
        folder = self.config.run_dir
        # Equal in evaluations and cost, so that a better result is due to the search.
        config = replace(
            self.config,
            epochs=max(1, result.evaluations),
            max_evaluations=max(1, result.evaluations),
            max_cost=result.cost or None,
            # Confirmations are part of the budget, so at least one evaluation is left for the
            # search.
            confirm=min(self.config.confirm, max(0, result.evaluations - 1)),
            mode="generation",
            patience=None,
            run_dir=None if folder is None else Path(folder) / "baseline",
            on_event=None,
        )
        simpler = await EvolutionPipeline(config, rival(self.strategy, initial)).run(initial)
        name = getattr(rival, "__name__", type(rival).__name__)
        return Baseline(name, simpler.best_score, simpler.best_interval, simpler.evaluations)

    def _initial(self, state: State[C], population: Iterable[C]) -> list[Member[C]]:
        members = []
        for number, candidate in enumerate(population):
            if candidate is None:
                raise DataError(f"candidate {number} of the initial population is None")
            key, _ = state.identify(candidate)
            members.append(state.add_member(candidate, key, origin="initial"))
        if not members:
            raise DataError("the initial population is empty: pass at least one candidate")
        return members

    def _open_journal(self, state: State[C], initial: list[Member[C]]) -> None:
        if self.config.run_dir is not None:
            fingerprint = _fingerprint(self.config, self.strategy, initial)
            texts = [state.codec.write(member.candidate) for member in initial]
            state.journal = FileRunJournal(Path(self.config.run_dir), fingerprint, texts)
            # Evaluations that are tried again were paid for, and count towards max_cost.
            state.budget.spend(state.journal.lost_cost)
            if self._holdout is not None:
                # Before the first call, which may change what the function refers to.
                state.holdout = _digest_of(self._holdout)

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
        best, reason = state.best, state.stop or StopReason.EPOCHS
        scores = best.scores if best else []
        # The winner's own scores are biased upwards, since it was chosen for them.
        if best and self.config.confirm:
            scores = await Evaluator(state).confirm(best) or scores
        best_score = mean_score(scores)
        state.enter(EvolutionPhase.COMPLETE)
        cause = f": {state.stop_cause}" if state.stop_cause else ""
        state.emit("stop", message=f"{reason}{cause}")
        if best:
            state.journal.write_end(
                {
                    "best": best.name,
                    "score": best_score,
                    "reason": reason,
                    "cause": state.stop_cause,
                }
            )
        return EvolutionResult(
            best=best.candidate if best else None,
            best_score=best_score,
            best_interval=interval_of(scores) if best else None,
            baseline=_of_first_epoch(state),
            initial_score=max((m.score for m in initial if m.scores), default=math.nan),
            epochs_completed=len(state.history),
            evaluations=state.budget.evaluations,
            cache_hits=state.cache_hits,
            failures=state.failures,
            cost=state.budget.cost,
            stop_reason=reason,
            stop_cause=state.stop_cause,
            history=tuple(state.history),
            population=tuple(m.candidate for m in population),
            # Once, at the end: data that decide anything are no longer held out.
            holdout_score=await self._held_out(state, best) if best else None,
            members=tuple(state.members),
        )

    async def _held_out(self, state: State[C], best: Member[C]) -> float | None:
        """Return the best candidate's held-out score, from the journal if it is there."""
        if self._holdout is None:
            return None
        recorded = state.journal.held_out.get((best.key, state.holdout))
        if recorded is not None:
            return recorded
        with boundary("holdout"):
            score = as_score(await call(self._holdout, best.candidate))
        # A candidate that cannot be written down has a key that holds in this process only.
        # A score with failed instances is not final: the next run tries them again.
        is_final = state.holdout and not score.failed
        if is_final and state.codec.write(best.candidate) is not None:
            state.journal.write_held_out(HeldOut(best.key, state.holdout, score.value))
        return score.value


def _digest_of(holdout: Callable[..., object]) -> str:
    """Return the digest of a function with its data, or "" if they cannot be described."""
    try:
        return digest_with_data(holdout)
    except Exception:  # the user's objects may raise in any attribute; the score is then not kept
        return ""


def _of_first_epoch(state: State[C]) -> Baseline:
    """Return the best of the first epoch: a best-of-N that costs nothing extra."""
    first = [m for m in state.members if m.epoch == 1 and m.error is None and m.scores]
    if not first:
        return Baseline("best of the first epoch", math.nan, None, 0)
    best = ranked(first)[0]
    return Baseline("best of the first epoch", best.score, interval_of(best.scores), len(first))


def _fingerprint(
    config: EvolutionConfig, strategy: EvolutionStrategy[C], initial: list[Member[C]]
) -> dict[str, Any]:
    """Return the values that must be unchanged for a journal to belong to this run.

    Limits (epochs, target, budgets) and speed (concurrency, timeout) may change, so that a run
    can be extended or sped up.
    """
    names = (
        "seed population_size selection_ratio mutation_rate crossover_rate elite replicates "
        "contenders mode"
    )
    kind = type(strategy)
    return {
        **{name: getattr(config, name) for name in names.split()},
        "strategy": f"{kind.__module__}.{kind.__qualname__}",
        **{f"strategy.{name}": str(part) for name, part in strategy.fingerprint().items()},
        "initial": [member.key for member in initial],
    }
