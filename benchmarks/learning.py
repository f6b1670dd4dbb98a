"""GRPO's reward curves on `tiny`: TRL's GRPOTrainer and this engine, three seeds each.

    python benchmarks/learning.py            # 60 steps a seed, about four minutes

The reward is the share of vowels among the characters of an answer. Same model, prompts, group
size, lengths and learning rate, float32, one thread. The seeds draw other samples in each engine,
so curves can only be alike, not equal: what is asked for is that the mean of ours never leaves the
range of TRL's three by more than that range is wide (or .05 where it is narrower).
TRL is the `bench` extra (trl==1.16.0).
"""

# ruff: noqa: ANN401 - what TRL hands over has no types

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from engine import reward
from turns import ANSWER, ENVIRONMENT, versions

SEEDS = (0, 1, 2)
BLOCKS = 12
PROMPTS = ["Say something.", "Name a colour.", "Sing.", "Tell me a story."]
GROUP = 8
NEW_TOKENS = 32
LEARNING_RATE = 2e-3
NARROWEST = 0.05


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        engine, seed = options.worker
        curve = {"ours": work_ours, "trl": work_trl}[engine](options.steps, int(seed))
        print(ANSWER + json.dumps(curve), flush=True)
        return
    print(f"{versions()}; mean reward in {BLOCKS} blocks of {options.steps // BLOCKS} steps")
    curves = {
        engine: [blocks(engine, seed, options.steps) for seed in SEEDS]
        for engine in ("trl", "ours")
    }
    compare(curves["trl"], curves["ours"])


def blocks(engine: str, seed: int, steps: int) -> list[float]:
    """Let a process of its own learn, print its curve and return it."""
    out = subprocess.run(
        [sys.executable, __file__, "--worker", engine, str(seed), "--steps", str(steps)],
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("BENCH_DEBUG") else subprocess.DEVNULL,
        text=True,
        check=True,
    ).stdout
    (line,) = (line for line in out.splitlines() if line.startswith(ANSWER))
    curve: list[float] = json.loads(line.removeprefix(ANSWER))
    size = steps // BLOCKS
    means = [statistics.fmean(curve[at : at + size]) for at in range(0, BLOCKS * size, size)]
    print(f"  {engine:4} seed {seed}: " + " ".join(f"{mean:.3f}" for mean in means), flush=True)
    return means


def compare(trl: list[list[float]], ours: list[list[float]]) -> None:
    """Say whether the mean of ours lies within the spread of TRL's, block by block."""
    outside = []
    for block in range(BLOCKS):
        theirs, mine = ([curve[block] for curve in curves] for curves in (trl, ours))
        slack = max(NARROWEST, max(theirs) - min(theirs))
        mean = statistics.fmean(mine)
        if not min(theirs) - slack <= mean <= max(theirs) + slack:
            outside.append(f"block {block}: {mean:.3f} against {min(theirs):.3f}-{max(theirs):.3f}")
    print("  every block within the spread" if not outside else "  outside: " + "; ".join(outside))


def work_ours(steps: int, seed: int) -> list[float]:
    """Learn on this engine."""
    import asyncio

    from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer

    config = VeRLConfig(
        model="tiny",
        epochs=steps,
        batch_size=len(PROMPTS),
        group_size=GROUP,
        max_response_length=NEW_TOKENS,
        learning_rate=LEARNING_RATE,
        seed=seed,
        progress=False,
    )
    trainer = VeRLTrainer(config, [RewardSpec("vowels", 1.0, reward)])
    asyncio.run(trainer.train(PROMPTS))
    return [row["reward"] for row in trainer.history]


def work_trl(steps: int, seed: int) -> list[float]:
    """Learn with TRL's trainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from orbiter.train.engine.models.load import load_model

    loaded = load_model("tiny", device="cpu")
    curve: list[float] = []

    def score(completions: list[Any], **_: Any) -> list[float]:
        rewards = [reward(answer[0]["content"]) for answer in completions]
        curve.append(statistics.fmean(rewards))
        return rewards

    rows = [[{"role": "user", "content": prompt}] for prompt in PROMPTS] * steps
    GRPOTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        reward_funcs=score,
        train_dataset=Dataset.from_dict({"prompt": rows}),
        args=GRPOConfig(
            output_dir=os.path.join(os.environ.get("TMPDIR", "."), "bench-learning-trl"),
            per_device_train_batch_size=len(PROMPTS) * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            loss_type="dapo",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            beta=0.0,
            seed=seed,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    ).train()
    return curve


if __name__ == "__main__":
    main()
