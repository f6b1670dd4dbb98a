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

from dataclasses import dataclass
from typing import Any

from engine import TEXT
from trl_peer import before_updates, make_turns, run_cases, step, trl_settings
from turns import say_peak

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
    run_cases(__file__, __doc__, CASES, {"ours": work_ours, "trl": work_trl})


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
        with step() as numbers:
            batch = collate([given(prompt, answer) for prompt, answer in pairs])
            update(policy, batch, optimiser, ImitationObjective())
            numbers.update(tokens=TOKENS, samples=len(pairs))
    say_peak()


def work_trl(case: Case, steps: int) -> None:
    """Take updates with TRL's trainer, one pack of tokens each."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from orbiter.train.engine.models.load import load_model

    torch.set_num_threads(case.threads)
    loaded = load_model(case.model, device="cpu")
    tokens: list[int] = []
    """Of the update in progress: what TRL packs decides it."""
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
        callbacks=[make_turns(lambda: {"tokens": tokens.pop(), "samples": len(LENGTHS)})],
        args=SFTConfig(
            **trl_settings("sft", case.dtype, steps),
            per_device_train_batch_size=1,
            packing=True,
            max_length=TOKENS,
            completion_only_loss=True,
        ),
    )
    before_updates(trainer, lambda inputs: tokens.append(inputs["input_ids"].numel()))
    trainer.train()
    say_peak()


if __name__ == "__main__":
    main()
