"""A run that leaves a line for everything it is asked: to be killed, and run again.

python journal_worker.py RUN_DIR ASKED_FILE
"""

from __future__ import annotations

import asyncio
import os
import sys

from typing_extensions import override

from orbiter.train.synthesis import (
    DataSynthesiser,
    SynthesisConfig,
    SynthesisContext,
    SynthesisPipeline,
    SynthesisResult,
)
from orbiter.train.trajectory import TrajectoryItem


class Noted(DataSynthesiser):
    """Writes down what it is asked for before it answers."""

    def __init__(self, asked: int) -> None:
        self.asked = asked

    @property
    @override
    def fingerprint(self) -> str:
        """The file that it writes to is not a setting."""
        return "Noted"

    @override
    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> list[TrajectoryItem]:
        assert context is not None
        os.write(self.asked, f"batch {context.offset}\n".encode())
        rng = context.rng
        await asyncio.sleep(0.008 * rng.random())
        made = []
        for n in range(context.offset, context.offset + count):
            told = n if n % 5 else n // 2
            tale = " ".join(str(rng.randrange(50)) for _ in range(n % 5))
            state = f"{told} is what agent {told * 31} asks about: {tale}"
            action = f"after {len(context.accepted)}"
            made.append(TrajectoryItem(state, action, metadata={"n": n}))
        return made


async def run(run_dir: str, asked_file: str) -> SynthesisResult:
    """Make 600 items, noting every ask."""
    asked = os.open(asked_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def scorer(item: TrajectoryItem) -> float:
        os.write(asked, f"score {item.metadata['n']}\n".encode())
        await asyncio.sleep(0.004)
        return len(item.state) % 7 / 7

    config = SynthesisConfig(target_size=600, min_score=0.4, batch_size=8, concurrency=4)
    pipeline = SynthesisPipeline(config, scorer=scorer, run_dir=run_dir).add_step(Noted(asked))
    try:
        return await pipeline.run([TrajectoryItem("a seed", "an answer")])
    finally:
        os.close(asked)


if __name__ == "__main__":
    os.write(1, b"ready\n")
    result = asyncio.run(run(*sys.argv[1:3]))
    os.write(1, f"{len(result.items)}\n".encode())
