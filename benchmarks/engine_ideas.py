"""What each idea of the engine is worth: the engine with it and without it, in turn.

    python benchmarks/engine_ideas.py

A Llama of SmolLM2's widths with 6 of its 30 layers and random weights, 2 prompts of 100 tokens,
8 answers each of 8 to 48 tokens, one thread. CPU seconds, medians over the rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import transformers

from orbiter.train.engine import branches
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.forward import attend, head, layers
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.objective import PolicyObjective
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.rollout import given
from orbiter.train.engine.sample import choose, sample
from orbiter.train.engine.update import Part, logprob, ref_logprob, score, value

ROUNDS = 3
GROUP = 8
CONFIG = transformers.LlamaConfig(
    vocab_size=16384,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=6,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    pad_token_id=0,
    eos_token_id=1,
)
PROMPTS = [[5 + index] * (96 + 4 * index) for index in range(2)]
Act = Callable[[], object]


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, load average {os.getloadavg()[0]:.1f}")
    for dtype in ("bfloat16", "float32"):
        policy = policy_in(dtype)
        batch = ragged()
        print(f"\n{dtype}                                        without     with   gain")
        in_update(policy, batch)
        in_sampling(policy)
    costs(ragged())


def in_update(policy: Policy, batch: Batch) -> None:
    """Compare one forward and backward."""
    alone = replace(batch, group=torch.arange(len(batch.group)))
    learn = lambda b: lambda: loss_of(policy, b).backward()  # noqa: E731
    compare("update: shared prompts", learn(alone), learn(batch))
    generic = make_policy(policy.model, policy.tokenizer, dtype=policy.dtype, path="generic")
    compare("update: packed, own forward", lambda: loss_of(generic, alone).backward(), learn(alone))

    def in_blocks() -> None:
        with setting(attend, "LONG_FROM", 0):
            learn(batch)()

    compare("update: plain products for short rows", in_blocks, learn(batch))
    everywhere = torch.arange(batch.mask.shape[1]) < batch.length[:, None]
    everywhere[:, 0] = False
    advantage = torch.zeros(everywhere.shape)
    whole = replace(alone, mask=everywhere, advantage=advantage)
    compare("update: head on answers only", learn(whole), learn(alone))
    compare("update: answers alike for half their length", learn(batch), learn(alike(batch)))


def in_sampling(policy: Policy) -> None:
    """Compare drawing 16 answers of 32 tokens."""

    def draw(by: Policy) -> Act:
        return lambda: sample(by, PROMPTS, n=GROUP, max_new_tokens=32, seed=0)

    generic = make_policy(policy.model, policy.tokenizer, dtype=policy.dtype, path="generic")
    compare("sampling: own decode loop", draw(generic), draw(policy))

    def plain() -> None:
        with setting(layers, "PREPACK_FROM", 1 << 40):
            draw(policy)()

    compare("sampling: prepacked weights", plain, draw(policy))
    certain = lambda: sample(policy, PROMPTS, n=GROUP, max_new_tokens=32, temperature=0.02)  # noqa: E731
    compare("sampling: answers mostly alike", draw(policy), certain)
    policy.stop_token_ids = frozenset(range(2, 16384, 24))

    def kept() -> None:
        with setting(branches, "DROP_SHARE", 0):
            draw(policy)()

    compare("sampling: finished rows dropped", kept, draw(policy))
    policy.stop_token_ids = frozenset({1})
    logits, uniform = torch.randn(16, 49152), torch.rand(16)

    def stock() -> None:
        token = torch.multinomial(logits.softmax(dim=-1), 1)
        torch.log_softmax(logits, dim=-1).gather(1, token)

    compare("drawing 16 tokens of 49,152", stock, lambda: choose(logits, uniform, temperature=1.0))


def costs(batch: Batch) -> None:
    """Tell what PPO and a KL cost beside a GRPO update, and what the entropy does."""
    policy = make_policy(
        transformers.LlamaForCausalLM(CONFIG), tiny_tokenizer(), value_head=True, lora_rank=16
    )
    zeros = torch.zeros_like(batch.sampled_logprob)
    ppo = replace(batch, old_value=zeros, return_=zeros)

    def with_values() -> None:
        value(policy, batch)
        loss_of(policy, ppo, PolicyObjective(vf_coef=0.5)).backward()

    def with_reference() -> None:
        ref = ref_logprob(policy, batch)
        loss_of(policy, replace(batch, ref_logprob=ref), PolicyObjective(kl_coef=0.1)).backward()

    print("\nLoRA, float32, one update                      plain    with     times")
    grpo = lambda: loss_of(policy, batch).backward()  # noqa: E731
    compare("PPO: old values and value loss", with_values, grpo, upside_down=True)
    compare("KL against the switched-off adapters", with_reference, grpo, upside_down=True)
    tokens = int(batch.mask.sum())
    logits = torch.randn(head.CHUNK_ELEMENTS // CONFIG.vocab_size, CONFIG.vocab_size)
    mass = logits.exp()
    once = median(lambda: [torch.einsum("nv,nv->n", mass, logits) for _ in range(10)]) / 10
    share = once * tokens / len(logits) / median(grpo)
    print(f"  entropy, beside the log probabilities: {share:.1%} of the update")
    forward = lambda: logprob(policy, batch)  # noqa: E731
    print(f"  one forward pass without gradients: {median(forward):.2f} CPU s")


def loss_of(policy: Policy, batch: Batch, objective: PolicyObjective | None = None) -> torch.Tensor:
    """Return the loss, with its graph; gradients of earlier calls are forgotten."""
    for parameter in policy.named_trainable().values():
        parameter.grad = None
    objective = objective or PolicyObjective()
    loss, _ = objective(score(policy, batch), batch, Part(1.0, 1.0))
    return loss


def compare(name: str, without: Act, with_it: Act, *, upside_down: bool = False) -> None:
    """Run both in turn and print the medians of their CPU seconds."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for act, times in zip((without, with_it), taken, strict=True):
            times.append(cpu_seconds(act))
    slow, fast = statistics.median(taken[0]), statistics.median(taken[1])
    first, second = (fast, slow) if upside_down else (slow, fast)
    print(f"  {name:42} {first:7.3f}  {second:7.3f}   x{slow / fast:.2f}", flush=True)


def median(act: Act) -> float:
    return statistics.median(cpu_seconds(act) for _ in range(ROUNDS))


def cpu_seconds(act: Act) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


class setting:  # noqa: N801 - reads as a word in a with statement
    """Hold a module's constant at another value for a while."""

    def __init__(self, module: object, name: str, value: int) -> None:
        self.module, self.name, self.value = module, name, value

    def __enter__(self) -> None:
        self.before = getattr(self.module, self.name)
        setattr(self.module, self.name, self.value)

    def __exit__(self, *_: object) -> None:
        setattr(self.module, self.name, self.before)


def policy_in(dtype: str) -> Policy:
    torch.manual_seed(0)
    return make_policy(transformers.LlamaForCausalLM(CONFIG), tiny_tokenizer(), dtype=dtype)


def ragged() -> Batch:
    """16 answers of synthetic lengths: two in five run to the end."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(2 * GROUP):
        length = int(torch.randint(8, 49, (1,), generator=generator)) if index % 5 > 1 else 48
        rows.append(given(PROMPTS[index // GROUP], [7 + index] * length))
    return collate(rows, advantage=torch.linspace(-1, 1, 2 * GROUP))


def alike(batch: Batch) -> Batch:
    """Return the same lengths, where the answers to a prompt begin with the same 24 tokens."""
    token_ids = batch.token_ids.clone()
    for row, start in enumerate(batch.prompt_length.tolist()):
        token_ids[row, start : start + 24] = 3
    return replace(batch, token_ids=token_ids * (batch.token_ids > 0))


if __name__ == "__main__":
    main()
