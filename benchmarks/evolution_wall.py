"""Wall time over the ideal: 20 ms evaluations at concurrency 32, without and with stragglers.

The ideal is the sum of all evaluations' seconds over 32. Stragglers: 2 % take 1 s. Targets for
steady mode: at most 1.2 without and 1.5 with them.

    python benchmarks/evolution_wall.py
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from machine import machine
from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, EvolutionStrategy

AT_ONCE, POPULATION, COUNT, LENGTH, REPEATS = 32, 64, 1_280, 64, 3
Bits = tuple[int, ...]


class Clock:
    """Hands out how long the next evaluation takes, and adds it up."""

    def __init__(self, stragglers: float) -> None:
        self.total, self.count = 0.0, 0
        self._stragglers, self._draws = stragglers, random.Random(7)

    def next(self) -> float:
        """Return the seconds of the next evaluation."""
        seconds = 1.0 if self._draws.random() < self._stragglers else 0.02
        self.total += seconds
        self.count += 1
        return seconds


def flip(bits: Bits, draws: random.Random) -> Bits:
    return tuple(b ^ (draws.random() < 1 / LENGTH) for b in bits)


def starts() -> list[Bits]:
    draws = random.Random(0)
    return [tuple(draws.randrange(2) for _ in range(LENGTH)) for _ in range(POPULATION)]


class Slow(EvolutionStrategy[Bits]):
    """OneMax that takes its time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def evaluate(self, candidate: Bits) -> float:
        """Wait, then count the ones."""
        await asyncio.sleep(self.clock.next())
        return float(sum(candidate))

    async def mutate(self, candidate: Bits) -> Bits:
        """Flip one bit on average."""
        return flip(candidate, self.context.rng)


def ours(clock: Clock, mode: Any) -> None:  # noqa: ANN401 - one of the two modes
    config = EvolutionConfig(
        epochs=10**6, population_size=POPULATION, concurrency=AT_ONCE, mode=mode,
        max_evaluations=COUNT,
    )  # fmt: skip
    asyncio.run(EvolutionPipeline(config, Slow(clock)).run(starts()))


def deap(clock: Clock) -> None:
    from deap import algorithms, base, creator, tools

    if not hasattr(creator, "Single"):
        creator.create("Single", base.Fitness, weights=(1.0,))
        creator.create("Genome", list, fitness=creator.Single)

    def evaluate(genome: list[int]) -> tuple[int]:
        time.sleep(clock.next())
        return (sum(genome),)

    box = base.Toolbox()
    box.register("evaluate", evaluate)
    box.register("mate", tools.cxTwoPoint)
    box.register("mutate", tools.mutFlipBit, indpb=1 / LENGTH)
    box.register("select", tools.selTournament, tournsize=3)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        box.register("map", pool.map)
        population = [creator.Genome(bits) for bits in starts()]
        epochs = COUNT // POPULATION - 1
        algorithms.eaMuPlusLambda(
            population, box, POPULATION, POPULATION, 0.5, 0.5, epochs, verbose=False
        )


def gepa(clock: Clock) -> None:
    from gepa.optimize_anything import (
        EngineConfig,
        GEPAConfig,
        ReflectionConfig,
        TrackingConfig,
        optimize_anything,
    )
    from gepa.strategies.proposal_sampling import IndependentSampling

    class Silent:
        def log(self, *_args: object, **_kwargs: object) -> None: ...

    draws = random.Random(0)

    def propose(candidate: Any, *_args: object) -> Any:  # noqa: ANN401 - gepa's types
        return {
            name: "".join(map(str, map(int, flip(tuple(map(int, text)), draws))))
            for name, text in candidate.items()
        }

    def evaluate(candidate: Any, **_kwargs: object) -> Any:  # noqa: ANN401 - gepa's types
        time.sleep(clock.next())
        text = candidate if isinstance(candidate, str) else next(iter(candidate.values()))
        return sum(map(int, text)) / LENGTH, {}

    engine = EngineConfig(
        max_metric_calls=COUNT // 2, parallel=True, max_workers=AT_ONCE,
        frontier_type="instance", sampling_strategy=IndependentSampling(AT_ONCE),
    )  # fmt: skip
    config = GEPAConfig(
        engine=engine,
        reflection=ReflectionConfig(custom_candidate_proposer=propose, reflection_lm=None),
        tracking=TrackingConfig(logger=Silent()),
    )
    optimize_anything(
        seed_candidate="0" * LENGTH, evaluator=evaluate, objective="ones", config=config
    )


def main() -> None:
    print(f"{machine()}; wall over ideal, of 20 ms")
    runs = {
        "ours, steady": (lambda clock: ours(clock, "steady"), REPEATS),
        "ours, generation": (lambda clock: ours(clock, "generation"), REPEATS),
        "DEAP mu+lambda, 32 threads": (deap, 1),
        "gepa 0.1.4, 32 proposals": (gepa, 1),
    }
    for stragglers in (0.0, 0.02):
        print(f"{100 * stragglers:.0f} % of 1 s")
        for name, (run, repeats) in runs.items():
            ratios = []
            for _ in range(repeats):
                clock = Clock(stragglers)
                begin = time.perf_counter()
                run(clock)
                ratios.append((time.perf_counter() - begin) / (clock.total / AT_ONCE))
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})" if repeats > 1 else ""
            print(f"  {name:28s} {statistics.median(ratios):6.2f} {spread}", flush=True)
    print("targets for steady: at most 1.2 and 1.5")


if __name__ == "__main__":
    main()
