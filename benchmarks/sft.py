"""SFT on this machine: TRL's SFTTrainer and this engine, update by update in turn.

    python benchmarks/sft.py                      # every case, 6 updates, the first dropped
    python benchmarks/sft.py --cases tiny --steps 8

Both imitate the same answers to the same prompts, about 1,024 tokens an update, packed, with
AdamW over every weight and the loss on the answers only; each in its own process and only when it
is its turn. TRL packs as it does by default ("bfd"). TRL is the `bench` extra
(trl==1.16.0).
"""

# ruff: noqa: ANN401 - what TRL and torch hand over has no types

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from typing import Any

from engine import TEXT
from machine import machine
from turns import Race, await_turn, race, say_peak, tell, versions

LENGTHS = [(40, 24), (64, 32), (80, 32), (88, 40), (96, 32), (104, 40), (120, 40), (160, 32)]
"""Tokens of prompt and answer of the items of one update: 1,024 in all."""
TOKENS = sum(prompt + answer for prompt, answer in LENGTHS)


@dataclass(frozen=True, slots=True)
class Case:
    """One setting that both engines run."""

    model: str
    threads: int
    dtype: str = "bfloat16"
    target: float = 1.5
    """How many times TRL's tokens a second are asked for."""


CASES = {
    "tiny": Case("tiny", 1, target=0.0),
    "bf16": Case("smollm2-135m", 1),
    "bf16-2t": Case("smollm2-135m", 2),
    "fp32": Case("smollm2-135m", 1, dtype="float32", target=2.0),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments.add_argument("--steps", type=int, default=6)
    arguments.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        engine, name = options.worker
        {"ours": work_ours, "trl": work_trl}[engine](CASES[name], options.steps)
        return
    print(f"{machine()}, {versions()}")
    for name in options.cases:
        case = CASES[name]
        title = f"{name}: {case}"
        race(Race(__file__, name, title, case.threads, case.dtype, case.target), options.steps)


def items(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Return prompt and answer, in token ids, of the items of one update."""
    stream = tokenizer(TEXT)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        (stream[index : index + prompt], stream[-answer + 1 - index :][: answer - 1] + end)
        for index, (prompt, answer) in enumerate(LENGTHS)
    ]


def work_ours(case: Case, steps: int) -> None:
    """Take updates on this engine."""
    import torch

    from orbiter.train.engine.batch import collate
    from orbiter.train.engine.models.load import load_model
    from orbiter.train.engine.objective import ImitationObjective
    from orbiter.train.engine.optimiser import make_optimiser
    from orbiter.train.engine.policy import make_policy
    from orbiter.train.engine.rollout import given
    from orbiter.train.engine.update import update

    torch.set_num_threads(case.threads)
    loaded = load_model(case.model, device="cpu")
    policy = make_policy(loaded.model, loaded.tokenizer, dtype=case.dtype, device="cpu")
    optimiser = make_optimiser(policy, learning_rate=1e-6)
    pairs = items(loaded.tokenizer)
    for _ in range(steps):
        await_turn()
        wall, cpu = time.perf_counter(), time.process_time()
        batch = collate([given(prompt, answer) for prompt, answer in pairs])
        update(policy, batch, optimiser, ImitationObjective())
        tell(
            tokens=TOKENS,
            samples=len(pairs),
            wall=time.perf_counter() - wall,
            cpu=time.process_time() - cpu,
        )
    say_peak()


def work_trl(case: Case, steps: int) -> None:
    """Take updates with TRL's trainer, one pack of tokens each."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from orbiter.train.engine.models.load import load_model

    torch.set_num_threads(case.threads)
    loaded = load_model(case.model, device="cpu")
    began = {"wall": 0.0, "cpu": 0.0}

    class Turns(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
        """Hold the trainer between updates."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            await_turn()
            began.update(wall=time.perf_counter(), cpu=time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            tell(
                tokens=seen.pop(),
                samples=len(LENGTHS),
                wall=time.perf_counter() - began["wall"],
                cpu=time.process_time() - began["cpu"],
            )

    seen: list[int] = []
    rows = [
        {
            "input_ids": prompt + answer,
            "completion_mask": [0] * len(prompt) + [1] * len(answer),
        }
        for prompt, answer in items(loaded.tokenizer)
    ]
    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        train_dataset=Dataset.from_list(rows * steps),
        callbacks=[Turns()],
        args=SFTConfig(
            output_dir=os.path.join(os.environ.get("TMPDIR", "."), "bench-sft-trl"),
            per_device_train_batch_size=1,
            packing=True,
            max_length=TOKENS,
            max_steps=steps,
            learning_rate=1e-6,
            completion_only_loss=True,
            bf16=case.dtype == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )
    inner = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        seen.append(inputs["input_ids"].numel())
        return inner(model, inputs, *rest, **named)

    trainer.training_step = counted
    trainer.train()
    say_peak()


if __name__ == "__main__":
    main()
