"""What the loop itself costs per candidate made: CPU time with a fitness of a microsecond or two.

OneMax with 64 bits, two-point crossover and bit flips, the journal on. A candidate made is one that
was varied: ours come to an end at 10,000 evaluations, with those that were known already and cost
none counted among the made; DEAP's eaSimple (0.5, 0.2), in memory, evaluates whatever it varied;
gepa keeps a run folder. Targets: at most 1.2 of DEAP's at every population; flat within 30 % from
20 to 10,000; gepa's at least 100 times as much.

    python benchmarks/evolution_overhead.py
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from typing import Any

from machine import machine
from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline, EvolutionStrategy

LENGTH, REPEATS, LEAST = 64, 5, 10_000
Bits = tuple[int, ...]


class OneMax(EvolutionStrategy[Bits]):
    """As much work on a candidate as DEAP's operators do, and no more."""

    def __init__(self) -> None:
        self.random = random.Random(0)
        self.varied = 0

    async def evaluate(self, candidate: Bits) -> float:
        """Count the ones."""
        return float(sum(candidate))

    async def mutate(self, candidate: Bits) -> Bits:
        """Flip one bit on average."""
        self.varied += 1
        draw = self.random.random
        return tuple([b ^ 1 if draw() < 1 / LENGTH else b for b in candidate])

    def crossover(self, first: Bits, second: Bits) -> Bits:
        """Exchange a stretch."""
        low, high = sorted(self.random.sample(range(LENGTH), 2))
        return first[:low] + second[low:high] + first[high:]


def ours(population: int, mode: Any) -> float:  # noqa: ANN401 - one of the two modes
    draw = random.Random(0)
    start = [tuple(draw.randint(0, 1) for _ in range(LENGTH)) for _ in range(population)]
    candidates = max(LEAST, 2 * population)
    with tempfile.TemporaryDirectory() as folder:
        config = EvolutionConfig(
            epochs=10**6,
            population_size=population,
            max_evaluations=candidates,
            crossover_rate=0.5,
            mode=mode,
            run_dir=folder,
        )
        strategy = OneMax()
        begin = time.process_time()
        asyncio.run(EvolutionPipeline(config, strategy).run(start))
        return 1e6 * (time.process_time() - begin) / (population + strategy.varied)


def deap(population: int) -> float:
    from deap import algorithms, base, creator, tools

    if not hasattr(creator, "Single"):
        creator.create("Single", base.Fitness, weights=(1.0,))
        creator.create("Genome", list, fitness=creator.Single)
    box = base.Toolbox()
    made = 0

    def evaluate(genome: list[int]) -> tuple[int]:
        nonlocal made
        made += 1
        return (sum(genome),)

    box.register("evaluate", evaluate)
    box.register("mate", tools.cxTwoPoint)
    box.register("mutate", tools.mutFlipBit, indpb=1 / LENGTH)
    box.register("select", tools.selTournament, tournsize=3)
    random.seed(0)
    start = [creator.Genome(random.randint(0, 1) for _ in range(LENGTH)) for _ in range(population)]
    generations = 2 * max(LEAST, 2 * population) // population
    begin = time.process_time()
    algorithms.eaSimple(start, box, 0.5, 0.2, generations, verbose=False)
    return 1e6 * (time.process_time() - begin) / made


def gepa(calls: int = 1_000) -> float:
    import gepa as library
    from gepa.core.adapter import EvaluationBatch

    class Adapter:
        propose_new_texts = None

        def evaluate(self, batch: Any, candidate: Any, capture_traces: bool = False) -> Any:  # noqa: ANN401 - gepa's signature
            scores = [float(sum(map(int, candidate["x"]))) for _ in batch]
            traces = list(batch) if capture_traces else None
            return EvaluationBatch(outputs=scores, scores=scores, trajectories=traces)

        def make_reflective_dataset(self, *_args: object) -> Any:  # noqa: ANN401 - gepa's type
            return {"x": [{}]}

    def propose(candidate: Any, *_args: object) -> Any:  # noqa: ANN401 - gepa's types
        bits = [int(b) ^ (random.random() < 1 / LENGTH) for b in candidate["x"]]
        return {"x": "".join(map(str, bits))}

    class Silent:
        def log(self, *_args: object, **_kwargs: object) -> None: ...

    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        library.optimize(
            seed_candidate={"x": "0" * LENGTH}, trainset=[0], valset=[0], adapter=Adapter(),
            custom_candidate_proposer=propose, max_metric_calls=calls, logger=Silent(), seed=0,
            run_dir=folder, acceptance_criterion="improvement_or_equal",
            reflection_minibatch_size=1, perfect_score=1e9,
        )  # fmt: skip
        # Three calls a candidate: the parent's minibatch, the child's, the child's validation.
        return 3e6 * (time.process_time() - begin) / calls


def main() -> None:
    print(f"{machine()}; CPU us per candidate made,")
    print(f"median of {REPEATS} runs, interleaved (lowest to highest)")
    of_ours: list[float] = []
    for population in (20, 100, 1_000, 10_000):
        measures: dict[str, list[float]] = {"generation": [], "steady": [], "DEAP": []}
        for _ in range(REPEATS):
            measures["DEAP"].append(deap(population))
            measures["generation"].append(ours(population, "generation"))
            measures["steady"].append(ours(population, "steady"))
        middle = {name: statistics.median(values) for name, values in measures.items()}
        of_ours.append(middle["generation"])
        said = [f"{n} {middle[n]:5.1f} ({min(v):.1f}-{max(v):.1f})" for n, v in measures.items()]
        ratios = [f"{middle[n] / middle['DEAP']:.2f}" for n in ("generation", "steady")]
        print(f"population {population:6d}: {'  '.join(said)}")
        print(f"    ratios {' and '.join(ratios)} (target: at most 1.20)", flush=True)
    centre = (max(of_ours) + min(of_ours)) / 2
    print(f"flat within {100 * (max(of_ours) / centre - 1):.0f} % (target: 30 %)")
    peer = gepa()
    print(
        f"gepa with its run folder: {peer:.0f} us, {peer / statistics.median(of_ours):.0f} times "
        "ours (target: at least 100)"
    )


if __name__ == "__main__":
    main()
