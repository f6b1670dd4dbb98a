"""Rollouts until a prompt passes all 30 instances: PromptEvolution against gepa's best setting.

A rollout is one candidate on one instance. The reflecting model is simulated, the same for both: it
reads one of the failing traces that it was shown and, with a chance of 60 %, makes one right step
towards passing it; else it changes something at random. Target: at most 0.9 of gepa's median.

    python benchmarks/evolution_rollouts.py [seeds]
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from evolution_problems import TOKENS, Snippets
from machine import machine
from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline
from orbiter.train.evolution.strategies.prompt import PromptEvolution

SEEDS, CAP, RIGHT = 15, 30_000, 0.6
SNIPPETS = Snippets()
NAMES = [str(i) for i in range(SNIPPETS.instances)]


class Enough(Exception):  # noqa: N818 - a signal, no error
    """The target or the cap is reached."""


class Meter:
    """Counts rollouts, and notes when a candidate first passed every instance."""

    def __init__(self) -> None:
        self.rollouts = 0
        self.passed: dict[str, set[str]] = {}
        self.reached = False

    def run(self, text: str, name: str) -> float:
        """Try a prompt on an instance."""
        if self.rollouts >= CAP:
            raise Enough
        self.rollouts += 1
        passes = SNIPPETS.passes(bits(text), int(name))
        if passes:
            of_text = self.passed.setdefault(text, set())
            of_text.add(name)
            self.reached = self.reached or len(of_text) == SNIPPETS.instances
        return float(passes)


def bits(text: str) -> list[int]:
    on = {int(word) for word in text.split()}
    return [int(i in on) for i in range(SNIPPETS.count)]


def text_of(on: Sequence[int]) -> str:
    return " ".join(str(i) for i, bit in enumerate(on) if bit)


def reflect(text: str, failed: Sequence[int], draws: random.Random) -> str:
    """Return the text with one thing changed: the right one, or any."""
    on = bits(text)
    if failed and draws.random() < RIGHT:
        instance = draws.choice(failed)
        needed, foes = SNIPPETS.needed[instance], SNIPPETS.foes[instance]
        if sum(on) > SNIPPETS.longest:
            places = [i for i, bit in enumerate(on) if bit and i not in needed]
        else:
            places = [i for i in needed if not on[i]] + [i for i in foes if on[i]]
        place = draws.choice(places or range(SNIPPETS.count))
    else:
        place = draws.randrange(SNIPPETS.count)
    on[place] ^= 1
    return text_of(on)


def ours(seed: int) -> Meter:
    meter, draws = Meter(), random.Random(f"reflector {seed}")

    async def agent(text: Any, name: str) -> float:  # noqa: ANN401 - one text here
        return meter.run(text, name)

    async def metric(_name: str, output: Any) -> float:  # noqa: ANN401 - the agent's float
        return float(output)

    async def model(messages: Any) -> str:  # noqa: ANN401 - chat messages
        question = str(messages[1]["content"])
        text = question.split("<instructions>")[1].split("</instructions>", maxsplit=1)[0]
        failed = [int(number) for number in re.findall(r"^\[(\d+)\]", question, re.M)]
        return f"<instructions>{reflect(text, failed, draws)}</instructions>"

    strategy = PromptEvolution(agent, dict(zip(NAMES, NAMES, strict=True)), metric, model)
    config = EvolutionConfig(
        epochs=10**6, mode="steady", concurrency=1, seed=seed, target=1.0, max_cost=CAP
    )
    start = text_of(TOKENS.sample(random.Random(1000 + seed)))
    asyncio.run(EvolutionPipeline(config, strategy).run([start]))
    return meter


def gepas(seed: int, acceptance: str) -> Meter:
    import gepa
    from gepa.core.adapter import EvaluationBatch

    meter, draws = Meter(), random.Random(f"reflector {seed}")

    class Adapter:
        propose_new_texts = None

        def evaluate(self, batch: Any, candidate: Any, capture_traces: bool = False) -> Any:  # noqa: ANN401 - gepa's signature
            if meter.reached:
                raise Enough
            scores = [meter.run(candidate["text"], name) for name in batch]
            traces = list(zip(batch, scores, strict=True)) if capture_traces else None
            return EvaluationBatch(outputs=scores, scores=scores, trajectories=traces)

        def make_reflective_dataset(self, _candidate: Any, batch: Any, _parts: Any) -> Any:  # noqa: ANN401 - gepa's types
            return {"text": [{"name": n, "score": s} for n, s in batch.trajectories]}

    def propose(candidate: Any, seen: Any, _parts: Any) -> Any:  # noqa: ANN401 - gepa's types
        failed = [int(row["name"]) for row in seen["text"] if row["score"] < 1]
        return {"text": reflect(candidate["text"], failed, draws)}

    class Silent:
        def log(self, *_args: object, **_kwargs: object) -> None: ...

    start = text_of(TOKENS.sample(random.Random(1000 + seed)))
    with contextlib.suppress(Enough):
        gepa.optimize(
            seed_candidate={"text": start}, trainset=NAMES, valset=NAMES,
            adapter=Adapter(), custom_candidate_proposer=propose, max_metric_calls=CAP,
            logger=Silent(), seed=seed, acceptance_criterion=acceptance,
            reflection_minibatch_size=3, track_best_outputs=False,
        )  # fmt: skip
    return meter


def row(name: str, meters: Sequence[Meter]) -> float:
    counts = sorted(m.rollouts if m.reached else CAP for m in meters)
    median = statistics.median(counts)
    reached = sum(m.reached for m in meters)
    quarter = counts[len(counts) // 4], counts[-1 - len(counts) // 4]
    print(
        f"{name:34s} reached {reached}/{len(meters)}  median {median:7.0f}  "
        f"quartiles {quarter[0]} to {quarter[1]}",
        flush=True,
    )
    return median


def main(seeds: int = SEEDS) -> None:
    print(f"{machine()}; {seeds} seeds")
    mine = row("PromptEvolution", [ours(seed) for seed in range(seeds)])
    best = row(
        "gepa 0.1.4 improvement_or_equal",
        [gepas(seed, "improvement_or_equal") for seed in range(seeds)],
    )
    row("gepa 0.1.4 default", [gepas(seed, "strict_improvement") for seed in range(min(5, seeds))])
    print(f"ratio {mine / best:.2f} of gepa's best setting (target: at most 0.90)")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
