"""DPO, GRPO and further SFT on the demo's requests, from the same SFT model, for equal seconds.

    python benchmarks/preference_demo.py dpo FOLDER --seconds 200     # or grpo, or sft
    python benchmarks/preference_demo.py compare FOLDER

FOLDER is that of a demo run (`make demo`): its `sft/best` is where all three begin, and its traces
are what SFT imitates. DPO samples eight calls for each of the demo's own requests, judges them, and
learns from the pairs of a right and a wrong call; the sampling is part of its time, of which it
takes two fifths. The time is CPU time of the process. Every method uses the demo's settings; DPO's
were set beforehand (learning_rate=1e-5, beta=0.1, batch_size=8, one pass after another) and not
tuned. The held-out requests are answered greedily.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from machine import machine
from orbiter.train import (
    PreferenceConfig,
    PreferenceTrainer,
    RewardSpec,
    SFTConfig,
    SFTTrainer,
    TrajectoryItem,
    VeRLAlgorithm,
    VeRLConfig,
    VeRLTrainer,
    mean_interval,
    paired_difference,
)
from orbiter.train.demo.check import score, verdict
from orbiter.train.demo.parts import draw, further_requests, split_requests
from orbiter.train.demo.plan import DemoPlan
from orbiter.train.demo.prompt import INSTRUCTION
from orbiter.train.demo.requests import load_requests
from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.formats.registry import read

PLAN = DemoPlan()
SAMPLED_AT_ONCE = 8
"""Requests for which calls are sampled together, as in a step of GRPO."""


class Demo:
    """The requests of a demo run and the model that it began GRPO with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.start = folder, str(folder / "sft" / "best")
        requests = load_requests()[: PLAN.requests]
        further = load_requests(part="multiple")[: PLAN.further_requests]
        self.by_id = {request.id: request for request in [*requests, *further]}
        parts = split_requests(requests, PLAN)
        self.held_out = parts.held_out
        practice = [*parts.own, *further_requests(self.by_id.values(), parts.held_out)]
        self.practice = draw(practice, len(practice), seed=PLAN.seed)

    def right(self, output: str, item: TrajectoryItem) -> bool:
        """Return the checker's verdict on a call."""
        return verdict(output, self.by_id[str(item.task_id)]).right

    def score(self, output: str, item: TrajectoryItem) -> float:
        """Return the demo's graded score of a call."""
        return score(output, self.by_id[str(item.task_id)])

    def lessons(self) -> list[TrajectoryItem]:
        """Return the right traces of the run."""
        return [item for item in read(self.folder / "traces.jsonl") if item.reward]


def engine() -> dict[str, Any]:
    return {
        "batch_size": PLAN.batch_size,
        "max_response_length": PLAN.max_response_length,
        "system_prompt": INSTRUCTION,
        "dtype": "bfloat16",
    }


def stop_at(trainer: ModelTrainer, cpu_seconds: float) -> None:
    """Stop a training once this process has used so much CPU time."""

    def watch() -> None:
        while time.process_time() < cpu_seconds:
            time.sleep(0.05)
        while not trainer.training:
            time.sleep(0.05)
        trainer.stop()

    threading.Thread(target=watch, daemon=True).start()


async def grpo(demo: Demo, seconds: float) -> ModelTrainer:
    config = VeRLConfig(
        algorithm=VeRLAlgorithm.GRPO,
        model=demo.start,
        group_size=PLAN.group_size,
        learning_rate=PLAN.grpo_learning_rate,
        warmup_steps=3,
        scale_rewards=False,
        **engine(),
    )
    trainer = VeRLTrainer(config, [RewardSpec("call", 1.0, demo.score)])
    await trainer.policy()
    stop_at(trainer, time.process_time() + seconds)
    await trainer.train(draw(demo.practice, 800, seed=PLAN.seed))
    print(f"{len(trainer.history)} steps of GRPO")
    return trainer


async def sft(demo: Demo, seconds: float) -> ModelTrainer:
    config = SFTConfig(
        model=demo.start, epochs=1000, learning_rate=PLAN.sft_learning_rate, **engine()
    )
    trainer = SFTTrainer(config)
    await trainer.policy()
    stop_at(trainer, time.process_time() + seconds)
    await trainer.train(demo.lessons())
    print(f"{len(trainer.history)} updates of SFT")
    return trainer


async def dpo(demo: Demo, seconds: float) -> ModelTrainer:
    sampler = VeRLTrainer(VeRLConfig(model=demo.start, **engine()))
    await sampler.policy()
    began = time.process_time()
    items: list[TrajectoryItem] = []
    for first in range(0, len(demo.practice), SAMPLED_AT_ONCE):
        if time.process_time() - began > 0.4 * seconds:
            break
        asked = demo.practice[first : first + SAMPLED_AT_ONCE]
        outputs = await sampler.generate(
            asked, temperature=1.0, samples=PLAN.group_size, seed=first
        )
        repeated = [item for item in asked for _ in range(PLAN.group_size)]
        items += [
            TrajectoryItem(
                item.state, output, float(demo.right(output, item)), task_id=item.task_id
            )
            for item, output in zip(repeated, outputs, strict=True)
        ]
    del sampler
    config = PreferenceConfig(model=demo.start, epochs=1000, learning_rate=1e-5, **engine())
    trainer = PreferenceTrainer(config)
    loading = time.process_time()
    await trainer.policy()
    stop_at(trainer, began + seconds + time.process_time() - loading)
    await trainer.train(items)
    last = trainer.history[-1]
    print(
        f"{len(items)} calls sampled, {sum(item.reward or 0 for item in items):.0f} right; "
        f"{len(trainer.history)} updates of DPO on 8 pairs, the last with accuracy "
        f"{last['accuracy']:.2f}, margin {last['margin']:.2f}, log probability of a right call "
        f"{last['chosen_logprob']:.1f}"
    )
    return trainer


async def train(method: str, demo: Demo, seconds: float, out: Path) -> None:
    print(f"{machine()}; load average {os.getloadavg()[0]:.1f}; {method}, {seconds:g} CPU seconds")
    trainer = await {"dpo": dpo, "grpo": grpo, "sft": sft}[method](demo, seconds)
    await trainer.save(out / method)


async def examine(method: str, demo: Demo, out: Path) -> None:
    model = demo.start if method == "start" else str(out / method)
    outputs = await VeRLTrainer(VeRLConfig(model=model, **engine())).generate(demo.held_out)
    right = [demo.right(o, item) for o, item in zip(outputs, demo.held_out, strict=True)]
    (out / f"{method}.json").write_text(json.dumps(right))
    print(f"{method:6} {mean_interval(map(float, right))}")


def compare(out: Path) -> None:
    """Print every share of right calls, and its difference from the start's, request by request."""
    exams = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    for name, right in exams.items():
        gain = paired_difference(map(float, right), map(float, exams["start"]))
        print(f"{name:6} {mean_interval(map(float, right))}, against the start {gain}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("what", choices=("dpo", "grpo", "sft", "exam", "compare"))
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--seconds", type=float, default=200.0)
    arguments.add_argument("--of", default="start")
    arguments.add_argument("--out", type=Path, default=Path("build/preference-demo"))
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "compare":
        compare(options.out)
    elif options.what == "exam":
        asyncio.run(examine(options.of, Demo(options.folder), options.out))
    else:
        demo = Demo(options.folder)
        asyncio.run(train(options.what, demo, options.seconds, options.out))


if __name__ == "__main__":
    main()
