"""Selects the survivors of an epoch: by default the best, or as the user's `select` decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from orbiter.train.callback import call_here
from orbiter.train.errors import CallbackError, boundary
from orbiter.train.evolution.member import Member, ranked
from orbiter.train.evolution.state import State
from orbiter.train.evolution.strategy import CURRENT, EvolutionStrategy

C = TypeVar("C")


async def survivors(state: State[C], population: Sequence[Member[C]]) -> list[Member[C]]:
    """Return the survivors of the epoch, best first; the best ever are always among them."""
    if state.strategy.selects():
        chosen = await _by_the_user(state, population)
    else:
        chosen = _best_share(state, population)
    # The elite survives even if the strategy drops it, so that the best ever is never lost.
    elite = ranked(m for m in (*population, *_best_ever(state)) if m.error is None and m.scores)
    kept = list(dict.fromkeys([*elite[: state.config.elite], *chosen]))
    if not kept:
        raise CallbackError(
            "select returned no survivors, and elite=0 keeps none: return at least one candidate"
        )
    return ranked(kept)[: max(state.config.population_size, 1)]


def _best_share(state: State[C], population: Sequence[Member[C]]) -> list[Member[C]]:
    alive = [member for member in ranked(population) if member.error is None and member.scores]
    return alive[: _places(state, len(population))]


def _places(state: State[C], alive: int) -> int:
    """Return how many members survive, of `alive` members including the failed ones."""
    count = min(alive, state.config.population_size)
    return max(1, math.ceil(state.config.selection_ratio * count - 1e-9))


def _best_ever(state: State[C]) -> list[Member[C]]:
    return [] if state.best is None else [state.best]


async def _by_the_user(state: State[C], population: Sequence[Member[C]]) -> list[Member[C]]:
    candidates = [member.candidate for member in population]
    scores = [member.score for member in population]
    full = [member.pooled() for member in population]
    places = _places(state, len(population))
    token = CURRENT.set(state.context("select", state.epoch, scores=full, places=places))
    try:
        with boundary("select"):
            selected = list(await _call_select(state.strategy, candidates, scores))
    finally:
        CURRENT.reset(token)
    chosen = _members_of(state, population, selected)
    if not chosen:
        state.emit("warning", message="select returned no candidate: only the elite survives")
    return chosen[: state.config.population_size]


async def _call_select(
    strategy: EvolutionStrategy[C], candidates: list[C], scores: list[float]
) -> Sequence[C]:
    try:
        return await call_here(strategy.select, candidates, scores)
    except TypeError as error:
        if "not supported between instances" not in str(error):
            raise
        raise CallbackError(
            f"select compared candidates of type {type(candidates[0]).__name__}, which have no "
            f"order ({error}). Equal scores let sorted(zip(scores, population)) look at the "
            "candidates; sort by the score alone: sorted(zip(scores, population), "
            "key=lambda pair: pair[0], reverse=True), or leave select out: the default does so"
        ) from error


def _members_of(
    state: State[C], population: Sequence[Member[C]], selected: Sequence[C]
) -> list[Member[C]]:
    """Return the members of the candidates, found by identity or content; new ones are added."""
    by_identity = {id(member.candidate): member for member in population}
    chosen = []
    for candidate in selected:
        member = by_identity.get(id(candidate))
        if member is None:
            # `select` may return a copy, or a candidate that was never in the population.
            key, _ = state.identify(candidate)
            member = state.known.get(key) or state.add_member(candidate, key, origin="select")
        chosen.append(member)
    return list(dict.fromkeys(chosen))
