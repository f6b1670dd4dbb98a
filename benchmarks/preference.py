"""DPO on this machine: TRL's DPOTrainer and this engine, update by update in turn.

    python benchmarks/preference.py                      # every case, 6 updates, the first dropped
    python benchmarks/preference.py --cases tiny --steps 8

Both learn from the same pairs with AdamW over every weight, one update at a time, each in its own
process and only when it is its turn. "Tokens" are those of both sides of each pair with their
prompts, as TRL runs them; this engine runs a shared prompt once. In the cases with
`precomputed=False`, a step includes the reference: TRL keeps a copy of the model, as it does by
default, and this engine scores the step's pairs before the first update, in the same timing. With
`precomputed=True` both have the reference's numbers already, as in every epoch but the first. TRL
is the `bench` extra (trl==1.16.0).
"""

# ruff: noqa: ANN401 - what TRL and torch hand over has no types

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from engine import TEXT
from trl_peer import before_updates, make_turns, run_cases, step, trl_settings
from turns import say_peak

CALLS = [(96, 24, 32), (128, 32, 24), (160, 40, 32), (200, 32, 40)]
"""Tokens of prompt, better and worse answer of a step's pairs: tool calls after a long prompt."""
PROSE = [(48, 120, 150), (64, 160, 110), (40, 200, 170)]
"""The same, of long answers to short questions."""


@dataclass(frozen=True, slots=True)
class Case:
    """One setting that both engines run."""

    model: str
    threads: int
    pairs: tuple[tuple[int, int, int], ...]
    dtype: str = "bfloat16"
    precomputed: bool = False
    target: float = 2.0
    """How many times TRL's tokens a second are asked for."""

    @property
    def tokens(self) -> int:
        """Tokens of both sides of every pair, prompts included."""
        return sum(2 * prompt + better + worse for prompt, better, worse in self.pairs)


CASES = {
    "tiny": Case("tiny", 1, tuple(CALLS), target=0.0),
    "calls": Case("smollm2-135m", 1, tuple(CALLS)),
    "prose": Case("smollm2-135m", 1, tuple(PROSE)),
    "calls-precomputed": Case("smollm2-135m", 1, tuple(CALLS), precomputed=True),
    "prose-precomputed": Case("smollm2-135m", 1, tuple(PROSE), precomputed=True),
    "calls-fp32": Case("smollm2-135m", 1, tuple(CALLS), dtype="float32"),
}


def main() -> None:
    run_cases(__file__, __doc__, CASES, {"ours": work_ours, "trl": work_trl})


def pairs(tokenizer: Any, case: Case) -> list[tuple[list[int], list[int], list[int]]]:
    """Return prompt, better and worse answer, in token ids, of the pairs of one step."""
    stream = tokenizer(TEXT)["input_ids"]
    stream = stream * (1 + 2_000 // len(stream))
    end = [tokenizer.eos_token_id]
    made = []
    for index, (prompt, better, worse) in enumerate(case.pairs):
        first, second = 300 + 7 * index, 700 + 11 * index
        made.append(
            (
                stream[index : index + prompt],
                stream[first : first + better - 1] + end,
                stream[second : second + worse - 1] + end,
            )
        )
    return made


def work_ours(case: Case, steps: int) -> None:
    """Take updates on this engine."""
    import torch

    from orbiter.train.agents.given_answers import streams_of
    from orbiter.train.engine.models.load import load_model
    from orbiter.train.engine.optimiser import make_optimiser
    from orbiter.train.engine.policy import make_policy
    from orbiter.train.engine.update import MICRO_BATCH_TOKENS, update
    from orbiter.train.preference import PreferenceConfig
    from orbiter.train.preference.encoding import EncodedAttempt, batch_of
    from orbiter.train.preference.objective import PairObjective
    from orbiter.train.preference.pairs import Attempt
    from orbiter.train.preference.reference import logprobs_of

    torch.set_num_threads(case.threads)
    loaded = load_model(case.model, device="cpu")
    policy = make_policy(loaded.model, loaded.tokenizer, dtype=case.dtype, device="cpu")
    optimiser = make_optimiser(policy, learning_rate=1e-6)
    blank = Attempt(items=[], reward=None)
    units = [
        [
            EncodedAttempt(attempt=blank, streams=streams_of([prompt], [answer]))
            for answer in answers
        ]
        for prompt, *answers in pairs(loaded.tokenizer, case)
    ]
    sides = [side for unit in units for side in unit]

    def reference() -> Any:
        numbers = logprobs_of(policy, sides, micro_batch_tokens=MICRO_BATCH_TOKENS, reference=False)
        return torch.tensor(numbers).view(-1, 2)

    ref = reference()
    config = PreferenceConfig(model=case.model)
    for _ in range(steps):
        with step() as numbers:
            if not case.precomputed:
                ref = reference()
            objective = PairObjective(config=config, ref_logprob=ref)
            update(policy, batch_of(units), optimiser, objective)
            numbers.update(tokens=case.tokens, samples=len(units))
    say_peak()


def work_trl(case: Case, steps: int) -> None:
    """Take updates with TRL's trainer, all pairs in one batch."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    from orbiter.train.engine.models.load import load_model

    torch.set_num_threads(case.threads)
    loaded = load_model(case.model, device="cpu")

    class Prepared(DPOTrainer):  # type: ignore[misc]  # TRL is not typed here
        """TRL's trainer, on pairs that are token ids already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    rows = [
        {"prompt_ids": prompt, "chosen_ids": better, "rejected_ids": worse}
        for prompt, better, worse in pairs(loaded.tokenizer, case)
    ]
    trainer = Prepared(
        model=loaded.model,
        ref_model=None if case.precomputed else copy.deepcopy(loaded.model),
        processing_class=loaded.tokenizer,
        train_dataset=Dataset.from_list(rows * steps),
        callbacks=[make_turns(lambda: {"tokens": case.tokens, "samples": len(rows)})],
        args=DPOConfig(
            **trl_settings("dpo", case.dtype, steps),
            per_device_train_batch_size=len(rows),
            precompute_ref_log_probs=case.precomputed,
            max_length=None,
        ),
    )

    def check(inputs: Any) -> None:
        assert int(inputs["attention_mask"].sum()) == case.tokens, "both run the same tokens"

    before_updates(trainer, check)
    trainer.train()
    say_peak()


if __name__ == "__main__":
    main()
