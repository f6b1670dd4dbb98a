"""Optimism of best_score where each of 30 verdicts is flipped with a chance of 15 %.

Optimism is the reported best_score less what an honest referee expects of the same candidate:
true * 0.85 + (1 - true) * 0.15. Equal budgets of 1,000 evaluations; 12 seeds. Target: at most .05.

    python benchmarks/evolution_noise.py
"""

from __future__ import annotations

import asyncio
import random
import statistics
from typing import Any

from evolution_problems import TOKENS, Snippets
from evolution_rollouts import bits, reflect, text_of
from machine import machine
from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, EvolutionStrategy, Score

SEEDS, FLIPPED, BUDGET = 12, 0.15, 1_000
SNIPPETS = Snippets()
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "contenders=10": {"contenders": 10},
    "contenders=10, confirm=30": {"contenders": 10, "confirm": 30},
}


class Noisy(EvolutionStrategy[str]):
    """Reflective steps judged by a referee who errs."""

    async def evaluate(self, candidate: str) -> Score:
        """Return 30 verdicts, some of them flipped."""
        draws, on = self.context.rng, bits(candidate)
        verdicts = {
            str(i): float(SNIPPETS.passes(on, i) != (draws.random() < FLIPPED))
            for i in range(SNIPPETS.instances)
        }
        return Score(statistics.fmean(verdicts.values()), verdicts)

    async def mutate(self, candidate: str) -> str:
        """Repair one instance that really fails, or change anything."""
        on = bits(candidate)
        failed = [i for i in range(SNIPPETS.instances) if not SNIPPETS.passes(on, i)]
        return reflect(candidate, failed, self.context.rng)


def run(seed: int, settings: dict[str, Any]) -> tuple[float, float, bool]:
    """Return the reported score, the true one, and whether the interval holds the expectation."""
    config = EvolutionConfig(epochs=10**4, max_evaluations=BUDGET, seed=seed, **settings)
    draws = random.Random(seed)
    start = [text_of(TOKENS.sample(draws)) for _ in range(20)]
    result = asyncio.run(EvolutionPipeline(config, Noisy()).run(start))
    assert result.best is not None
    assert result.best_interval is not None
    true = SNIPPETS.score(bits(result.best))
    honest = true * (1 - FLIPPED) + (1 - true) * FLIPPED
    return result.best_score, true, result.best_interval.low <= honest <= result.best_interval.high


def main() -> None:
    print(f"{machine()}; {SEEDS} seeds")
    for name, settings in SETTINGS.items():
        runs = [run(seed, settings) for seed in range(SEEDS)]
        optimism = [score - (t * (1 - FLIPPED) + (1 - t) * FLIPPED) for score, t, _ in runs]
        print(
            f"{name:28s} reported {statistics.fmean(r[0] for r in runs):.3f}  optimism "
            f"{statistics.fmean(optimism):+.3f} ({min(optimism):+.3f} to {max(optimism):+.3f})  "
            f"true pass rate {statistics.fmean(r[1] for r in runs):.3f}  interval holds the "
            f"expectation in {sum(r[2] for r in runs)}/{SEEDS}",
            flush=True,
        )
    print("target: optimism at most +0.050")


if __name__ == "__main__":
    main()
