"""Train a step or two, each case in a fresh process, and print what was told and what was taken.

python tests/engine/measured_peaks.py CASE ...     one line of JSON a case: its name, bytes told,
bytes in use before, bytes at the peak. Torch is imported once; each case is forked off that.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.distillation import DistillObjective
from orbiter.train.engine.memory import MemoryEstimate, memory_estimate
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.objective import ImitationObjective, PolicyObjective
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.rollout import Rollout, given
from orbiter.train.engine.sample import sample
from orbiter.train.engine.update import Objective, logprob, ref_logprob, update, value

SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6}
MIDDLE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
Words = list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to train one model."""

    method: str
    """sft, grpo, ppo or distill."""
    model: dict[str, int] | None = None
    """Sizes of a random Llama; None: SmolLM2-135M."""
    knobs: dict[str, Any] = field(default_factory=dict)
    prompts: int = 16
    n: int = 8
    prompt_tokens: int = 60
    new_tokens: int = 30
    micro_batch_tokens: int = 2048


BFLOAT16 = {"dtype": "bfloat16"}
LESSONS: dict[str, Any] = {
    "prompts": 10,
    "prompt_tokens": 120,
    "new_tokens": 40,
    "micro_batch_tokens": 800,
}
CASES = {
    "sft small": Case(method="sft", model=SMALL, prompts=64),
    "sft middle lora bfloat16": Case(
        method="sft", model=MIDDLE, prompts=32, knobs={**BFLOAT16, "lora_rank": 8}
    ),
    "grpo small": Case(method="grpo", model=SMALL),
    "grpo small long prompt": Case(
        method="grpo", model=SMALL, prompts=2, n=16, prompt_tokens=3000, new_tokens=200
    ),
    "grpo small generic": Case(method="grpo", model=SMALL, prompts=8, knobs={"path": "generic"}),
    "distill middle": Case(method="distill", model=MIDDLE, prompts=8),
    "ppo middle bfloat16": Case(
        method="ppo",
        model=MIDDLE,
        prompts=8,
        knobs={**BFLOAT16, "value_head": True, "reference": True},
    ),
    "smollm2 sft": Case(method="sft", knobs=BFLOAT16, **LESSONS),
    "smollm2 sft float32": Case(method="sft", **LESSONS),
    "smollm2 sft lora": Case(method="sft", knobs={**BFLOAT16, "lora_rank": 16}, **LESSONS),
    "smollm2 grpo float32": Case(method="grpo", prompts=4, prompt_tokens=120, new_tokens=24),
    "smollm2 grpo": Case(
        method="grpo", knobs=BFLOAT16, prompts=4, prompt_tokens=120, new_tokens=24
    ),
}


def measure(case: Case) -> list[int]:
    """Return what was told, what was in use before, and the peak, in bytes."""
    policy = make(case)
    told = tell(policy, case)
    optimiser = make_optimiser(policy, learning_rate=1e-4)
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        size = (case.prompts * case.n, case.prompt_tokens + case.new_tokens)
        words = torch.randint(5, 250, size, generator=generator).tolist()
        if case.method == "sft":
            lessons = words[: case.prompts]
            batch = collate(
                [given(w[: case.prompt_tokens], w[case.prompt_tokens :]) for w in lessons]
            )
            objective: Objective = ImitationObjective()
        else:
            batch = credited(policy, case, drawn(policy, case, words))
            objective = PolicyObjective(vf_coef=0.5 if case.method == "ppo" else 0.0)
            if case.method == "distill":
                objective = DistillObjective(reward=objective)
        update(policy, batch, optimiser, objective, micro_batch_tokens=case.micro_batch_tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [told.total, told.resident, peak]


def make(case: Case) -> Policy:
    """Make the policy of a case."""
    if case.model is None:
        loaded = load_model("smollm2-135m", device="cpu")
        return make_policy(loaded.model, loaded.tokenizer, device="cpu", **case.knobs)
    config = transformers.LlamaConfig(
        **case.model, **HEADS, vocab_size=4096, pad_token_id=0, max_position_embeddings=4096
    )
    model = transformers.LlamaForCausalLM(config)
    policy = make_policy(model, tiny_tokenizer(), device="cpu", **case.knobs)
    if case.method == "distill":
        wider = transformers.LlamaConfig(
            **(case.model | {"hidden_size": 512}), **HEADS, vocab_size=4096, pad_token_id=0
        )
        taught = transformers.LlamaForCausalLM(wider)
        policy.teacher = make_policy(taught, tiny_tokenizer(), device="cpu", **case.knobs)
        policy.teacher.model.requires_grad_(False)
    return policy


def tell(policy: Policy, case: Case) -> MemoryEstimate:
    """Ask for the estimate as the trainers do."""
    imitates = case.method == "sft"
    return memory_estimate(
        policy,
        prompts=case.prompts,
        n=1 if imitates else case.n,
        prompt_tokens=case.prompt_tokens + (case.new_tokens if imitates else 0),
        new_tokens=0 if imitates else case.new_tokens,
        trained_tokens=case.new_tokens if imitates else None,
        micro_batch_tokens=case.micro_batch_tokens,
        teacher=policy.teacher,
    )


def drawn(policy: Policy, case: Case, words: Words) -> list[Rollout]:
    """Sample, then put an answer of full length in each one's place: the most there can be."""
    prompts = [row[: case.prompt_tokens] for row in words[: case.prompts]]
    rollouts = sample(policy, prompts, n=case.n, max_new_tokens=case.new_tokens)
    return [
        given(rollout.token_ids[: case.prompt_tokens], row[case.prompt_tokens :])
        for rollout, row in zip(rollouts, words, strict=True)
    ]


def credited(policy: Policy, case: Case, rollouts: Sequence[Rollout]) -> Batch:
    """Add advantages; for PPO also what it compares with."""
    batch = collate(rollouts, advantage=torch.linspace(-1, 1, len(rollouts)))
    if case.method in ("grpo", "distill"):
        return batch
    size = case.micro_batch_tokens
    old_value = value(policy, batch, micro_batch_tokens=size)
    return replace(
        batch,
        old_logprob=logprob(policy, batch, micro_batch_tokens=size),
        ref_logprob=ref_logprob(policy, batch, micro_batch_tokens=size),
        old_value=old_value,
        return_=old_value + 1,
    )


def main() -> None:
    """Measure each case in a process of its own, so that no case sees another's heap."""
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        pid = os.fork()
        if pid == 0:
            sys.stdout.write(json.dumps([name, *measure(CASES[name])]) + "\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
