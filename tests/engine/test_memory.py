"""The memory told beforehand is the memory measured afterwards, within a fifth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from orbiter.train.engine.memory import memory_estimate
from orbiter.train.engine.policy import Policy

MakePolicy = Callable[..., Policy]

MEASURE = """
import json, resource, sys, torch, transformers
from orbiter.train.engine.batch import collate
from orbiter.train.engine.memory import memory_estimate
from orbiter.train.engine.objective import PolicyObjective
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import make_policy
from orbiter.train.engine.rollout import given, sample
from orbiter.train.engine.tiny import tiny_tokenizer
from orbiter.train.engine.update import update

torch.set_num_threads(1)
knobs = json.loads(sys.argv[1])
config = transformers.LlamaConfig(
    vocab_size=8192, hidden_size=512, intermediate_size=1365, num_hidden_layers=8,
    num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True, pad_token_id=0,
)
policy = make_policy(transformers.LlamaForCausalLM(config), tiny_tokenizer(), device="cpu", **knobs)
estimate = memory_estimate(policy, prompts=4, n=8, prompt_tokens=100, new_tokens=40)
optimiser = make_optimiser(policy, learning_rate=1e-4)
for seed in (0, 1):
    prompts = [[5 + prompt] * 100 for prompt in range(4)]
    rollouts = sample(policy, prompts, n=8, max_new_tokens=40, seed=seed)
    full = [given(r.token_ids[:100], (r.completion_ids * 40)[:40]) for r in rollouts]
    batch = collate(full, advantage=torch.linspace(-1, 1, 32))
    update(policy, batch, optimiser, PolicyObjective())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([estimate.total, peak]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize(
    "knobs", [{}, {"dtype": "bfloat16"}, {"lora_rank": 8}, {"path": "generic"}], ids=str
)
def test_the_estimate_lies_within_a_fifth_of_the_measured_peak(knobs: dict[str, object]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps(knobs)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    estimate, measured = json.loads(out.stdout.splitlines()[-1])
    assert 0.8 <= estimate / measured <= 1.2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_every_family_gets_an_estimate_in_words(policy_of: MakePolicy, family: str) -> None:
    estimate = memory_estimate(policy_of(family), prompts=2, n=4, prompt_tokens=20, new_tokens=8)
    assert estimate.total > estimate.optimiser > 0
    assert str(estimate).startswith("about ")


def test_adapters_and_fewer_tokens_take_less(policy_of: MakePolicy) -> None:
    sizes = {"prompts": 2, "n": 4, "prompt_tokens": 20, "new_tokens": 8}
    full = memory_estimate(policy_of(), **sizes)
    lora = memory_estimate(policy_of(lora_rank=2), **sizes)
    more = memory_estimate(policy_of(), **(sizes | {"new_tokens": 80}))
    assert lora.optimiser + lora.gradient < full.optimiser + full.gradient
    assert more.update > full.update
    assert more.rollout > full.rollout
