"""Evolve the settings of anything: numbers, whole numbers and choices, against random search.

python examples/04_evolve.py
"""

import asyncio

from orbiter.train.evolution import (
    Choice,
    EvolutionConfig,
    EvolutionPipeline,
    Float,
    Int,
    NumericEvolution,
    RandomSearch,
)

SPACE = {
    "temperature": Float(0.0, 2.0),
    "learning_rate": Float(1e-6, 1.0, log=True),
    "retries": Int(0, 9),
    "style": Choice(["terse", "plain", "chatty"]),
}


def score(settings: dict) -> float:
    """Score an imaginary agent: best at 0.3, 0.001, 2 and terse."""
    miss = abs(settings["temperature"] - 0.3) + abs(settings["retries"] - 2) / 9
    miss += abs(settings["learning_rate"] - 1e-3) ** 0.5 + (settings["style"] != "terse") / 2
    return 1 - miss


async def main() -> None:
    strategy = NumericEvolution(SPACE, score)
    config = EvolutionConfig(epochs=30, population_size=20)
    pipeline = EvolutionPipeline(config=config, strategy=strategy, baseline=RandomSearch)
    result = await pipeline.run(strategy.sample(20))
    print(f"best {result.best_score:.3f} after {result.evaluations} evaluations: {result.best}")
    print(f"of the first 20: {result.initial_score:.3f}; {result.baseline}")
    for ancestor in result.lineage(result.best)[-3:]:
        print(f"  candidate {ancestor.number}, by {ancestor.origin}: {ancestor.score:.3f}")


if __name__ == "__main__":
    asyncio.run(main())
