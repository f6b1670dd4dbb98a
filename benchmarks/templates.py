"""Template renderings a CPU second, as bare texts and as items.

    python benchmarks/templates.py

No peer: the field's template fillers render what they are told, with repetitions; ours samples
without replacement. The floor printed beside it is `str.format` with values drawn at random.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable

from machine import machine
from orbiter.train.synthesis import TemplateSynthesiser

ROUNDS, COUNT = 7, 100_000
TARGET = 300_000
TEMPLATES = [
    "Explain {topic} in simple terms to {reader}",
    "What are the pros and cons of {topic} for {reader}?",
    "Compare {topic} with {other} and say which suits {reader}",
]
VARIABLES = {
    "topic": [f"topic number {index}" for index in range(400)],
    "other": [f"other thing {index}" for index in range(300)],
    "reader": [f"reader {index}" for index in range(200)],
}


def texts() -> None:
    TemplateSynthesiser(TEMPLATES, VARIABLES).texts(COUNT)


def items() -> None:
    asyncio.run(TemplateSynthesiser(TEMPLATES, VARIABLES).generate(COUNT))


def with_repetitions() -> None:
    rng = random.Random(0)
    for index in range(COUNT):
        values = {name: rng.choice(column) for name, column in VARIABLES.items()}
        TEMPLATES[index % 3].format(**values)


def cpu_seconds(fn: Callable[[], None]) -> float:
    start = time.process_time()
    fn()
    return time.process_time() - start


def main() -> None:
    ways = {"texts": texts, "items": items, "str.format, repeating": with_repetitions}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, fn in ways.items():
            rates[name].append(COUNT / cpu_seconds(fn))
    print(f"{machine()}, one core")
    print(f"{COUNT:,} renderings without repetition, {ROUNDS} interleaved rounds, CPU time")
    for name, found in rates.items():
        print(
            f"  {name:22} {statistics.median(found):10,.0f} a second"
            f"   ({min(found):,.0f} to {max(found):,.0f})"
        )
    print(f"  target: texts at least {TARGET:,} a second")


if __name__ == "__main__":
    main()
