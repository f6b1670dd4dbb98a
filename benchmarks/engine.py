"""GRPO on this machine: TRL's GRPOTrainer and this engine, step by step in turn.

    python benchmarks/engine.py                        # every case, 6 steps, the first dropped
    python benchmarks/engine.py --cases tiny bf16 --steps 6

Both run the same model, prompts, group size, lengths, threads and arithmetic, each in a process
of its own (so that peak memory can be measured apart) and only when it is its turn. There is no KL,
and gradient checkpointing is off in both but for `demo`, which has TRL's default, where it is on;
`demo-best` is the same without. Those two take the demo's real requests and its policy after SFT
(made on first use), four other requests a step. TRL is the `bench` extra (trl==1.16.0).
CPU seconds are printed beside wall seconds: on a shared machine they are the steadier of the two.
"""

# ruff: noqa: ANN401 - what TRL, torch and a JSON line hand over has no types

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from demo_policy import demo_policy, demo_prompts, demo_reward
from orbiter.train.engine.batch import collate
from orbiter.train.engine.forward.fast import FastDecoder
from orbiter.train.engine.forward.generic import GenericDecoder
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.objective import PolicyObjective
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.sample import sample
from orbiter.train.engine.update import update
from orbiter.train.rl.advantage import group_relative_advantage
from trl_peer import Numbers, make_turns, run_cases, trl_settings
from trl_peer import step as timed_step
from turns import say_peak, timed, wrap

GROUP = 8
TRL_ROWS = 16
"""Answers that TRL takes at once in its update: 64 would need more memory than a laptop has."""
TEXT = (
    "The history of computing is full of surprising turns, and each of them was made by people "
    "who wanted to know a little more than they were told. "
) * 8


@dataclass(frozen=True, slots=True)
class Case:
    """One setting that both engines run."""

    model: str
    dtype: str
    threads: int
    prompts: int = 2
    prompt_tokens: int = 100
    new_tokens: int = 64
    lora_rank: int = 0
    path: str = "auto"
    checkpointing: bool = False
    """Whether TRL recomputes activations in the backward pass, which is its default."""
    target: float = 0.0
    """How many times TRL's tokens a second (the demo's: samples a second) are asked for."""

    @property
    def real(self) -> bool:
        """Whether it is the demo's own workload."""
        return self.model == DEMO


SMOL, DEMO = "smollm2-135m", "demo"
CASES = {
    "tiny": Case("tiny", "float32", 1, prompts=4, prompt_tokens=32, target=2.2),
    "bf16": Case(SMOL, "bfloat16", 1, target=4.0),
    "bf16-8": Case(SMOL, "bfloat16", 1, prompts=8, target=4.0),
    "lora": Case(SMOL, "bfloat16", 1, lora_rank=16, target=4.0),
    "bf16-2t": Case(SMOL, "bfloat16", 2, target=3.0),
    "fp32": Case(SMOL, "float32", 1, target=3.0),
    "demo": Case(DEMO, "bfloat16", 2, prompts=4, new_tokens=96, checkpointing=True, target=6.0),
    "demo-best": Case(DEMO, "bfloat16", 2, prompts=4, new_tokens=96),
    "generic": Case(SMOL, "bfloat16", 1, path="generic", target=1.2),
    "long": Case(SMOL, "bfloat16", 1, prompt_tokens=16, new_tokens=256),
}


def main() -> None:
    workers = {"ours": work_ours, "trl": work_trl}
    run_cases(__file__, __doc__, CASES, workers, prepare=prepare)


def prepare(case: Case) -> str:
    """Make the policy of the demo's cases; return what is counted a second."""
    if not case.real:
        return "tokens"
    demo_policy()
    return "samples"


def reward_of(case: Case) -> Callable[[str, str], float]:
    """Return what judges an answer to a prompt."""
    return demo_reward() if case.real else lambda _, text: reward(text)


def reward(text: str) -> float:
    """Return the share of vowels: cheap, and different from one sample to the next."""
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


def prompts_of(case: Case, tokenizer: Any, steps: int) -> list[str]:
    """Return every step's prompts: the demo's own, or of about the wanted number of tokens."""
    if case.real:
        return demo_prompts()[: case.prompts * steps]
    made = []
    for index in range(case.prompts):
        token_ids = tokenizer(TEXT)["input_ids"][: case.prompt_tokens - 10 + index % 4]
        made.append(tokenizer.decode(token_ids) + f"\nTell me more about number {index}:")
    return made * steps


def our_policy(case: Case) -> Policy:
    """Load the model into this engine."""
    loaded = load_model(demo_policy() if case.real else case.model, device="cpu")
    return make_policy(
        loaded.model,
        loaded.tokenizer,
        dtype=case.dtype,
        lora_rank=case.lora_rank,
        device="cpu",
        path=case.path,  # type: ignore[arg-type]  # "auto" or "generic"
    )


def work_ours(case: Case, steps: int) -> None:
    """Take GRPO steps on this engine."""
    torch.set_num_threads(case.threads)
    policy = our_policy(case)
    optimiser = make_optimiser(policy, learning_rate=1e-6)
    seconds: dict[str, float] = {}
    wrap(optimiser, "step", seconds, "optimiser")
    wrap(policy.forward, "decoder", seconds, "pack")
    for decoder in (FastDecoder, GenericDecoder):
        wrap(decoder, "start", seconds, "prefill")
    texts, judge = prompts_of(case, policy.tokenizer, steps), reward_of(case)
    for step in range(steps):
        asked = texts[step * case.prompts : (step + 1) * case.prompts]
        prompts = [policy.tokenizer(text)["input_ids"] for text in asked]
        seconds.clear()
        with timed_step() as numbers:
            with timed(seconds, "sample"):
                rollouts = sample(
                    policy, prompts, n=GROUP, max_new_tokens=case.new_tokens, seed=step
                )
            with timed(seconds, "reward"):
                rewards = [judge(asked[at // GROUP], each.text) for at, each in enumerate(rollouts)]
            advantage = group_relative_advantage(torch.tensor(rewards).view(-1, GROUP)).flatten()
            batch = collate(rollouts, advantage=advantage)
            with timed(seconds, "update"):
                update(policy, batch, optimiser, PolicyObjective())
            numbers.update(tokens=int(batch.mask.sum()), samples=len(rollouts), **seconds)
    say_peak()


def work_trl(case: Case, steps: int) -> None:
    """Take GRPO steps with TRL's trainer at its best settings for this case."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(case.threads)
    loaded = load_model(demo_policy() if case.real else case.model, device="cpu")
    seconds: dict[str, float] = {}
    tokens: list[int] = []

    def numbers() -> Numbers:
        """Return the numbers of the step that has ended, and begin those of the next one."""
        taken = {"tokens": sum(tokens), "samples": case.prompts * GROUP, **seconds}
        tokens.clear()
        seconds.clear()
        return taken

    judge = reward_of(case)

    def score(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        tokens.extend(len(row) for row in columns["completion_ids"])
        return [judge(*each) for each in zip(prompts, completions, strict=True)]

    lora = LoraConfig(
        r=case.lora_rank or 1,
        lora_alpha=2 * case.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = GRPOTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        reward_funcs=score,
        train_dataset=Dataset.from_dict({"prompt": prompts_of(case, loaded.tokenizer, steps)}),
        peft_config=lora if case.lora_rank else None,
        callbacks=[make_turns(numbers)],
        args=GRPOConfig(
            **trl_settings("engine", case.dtype, steps, gradient_checkpointing=case.checkpointing),
            per_device_train_batch_size=min(TRL_ROWS, case.prompts * GROUP),
            gradient_accumulation_steps=max(1, case.prompts * GROUP // TRL_ROWS),
            num_generations=GROUP,
            max_completion_length=case.new_tokens,
            shuffle_dataset=False,
            beta=0.0,
        ),
    )
    wrap(trainer, "_generate_single_turn", seconds, "sample")
    wrap(trainer, "training_step", seconds, "sample+update")
    trainer.train()
    say_peak()


if __name__ == "__main__":
    main()
