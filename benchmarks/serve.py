"""Throughput of `serve` with 1, 8 and 32 clients at once, against answering one after the other.

    python benchmarks/serve.py

The peer is the same server with one place (`max_rows=1`), which answers request after request, as
a loop around Hugging Face's `generate` would; and that loop itself, for one request. Real model,
real sockets, OpenAI's client; greedy, 32 tokens each, one thread. The ratio is of tokens per CPU
second, server and clients together, so that it holds on a busy machine too.
Target: 32 clients at least 3 x the tokens of one after the other.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import NamedTuple

import torch
from openai import AsyncOpenAI

from machine import machine
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.prompt import render
from orbiter.train.serve import PolicyServer

TOKENS = 32
CLIENTS = (1, 8, 32)
REPEATS = 2
QUESTIONS = [
    f"Write a short story about a {animal} in a {place}."
    for animal in ("cat", "fox", "whale", "crow", "horse", "mouse", "bear", "frog")
    for place in ("city", "forest", "desert", "castle")
]
TARGET = 3.0


class Run(NamedTuple):
    """One measurement."""

    tokens_per_cpu_second: float
    tokens_per_second: float
    """Of wall time: what clients see on this machine now."""
    p50: float
    """Seconds from request to answer, median over requests."""
    first: float
    """Seconds to the first token, median."""


async def main() -> None:
    torch.set_num_threads(1)
    print(f"{machine()}, load {os.getloadavg()[0]:.0f}, 1 thread")
    print(f"torch {torch.__version__}, SmolLM2-135M, {TOKENS} tokens an answer")
    policy = _policy("float32")
    _huggingface(policy)
    await _measure(policy, "float32")
    await _measure(_policy("bfloat16"), "bfloat16")


async def _measure(policy: Policy, dtype: str) -> None:
    runs: dict[str, list[Run]] = {}
    for _ in range(REPEATS):  # interleaved, so that a busy machine is busy for all
        for clients in CLIENTS:
            runs.setdefault(f"{clients:>2} at once", []).append(await _load(policy, clients, 32))
        runs.setdefault("in turn", []).append(await _load(policy, 2, 1))
    in_turn = statistics.median(run.tokens_per_cpu_second for run in runs["in turn"])
    print(f"\n{dtype}\n  clients    tokens/CPU s (spread)   x in turn  tokens/s   p50 s  first s")
    for name, of_name in runs.items():
        speeds = sorted(run.tokens_per_cpu_second for run in of_name)
        middle = statistics.median(speeds)
        wall, p50, first = (statistics.median(run[i] for run in of_name) for i in (1, 2, 3))
        print(
            f"  {name:<10}{middle:>9.1f} ({speeds[0]:.1f}-{speeds[-1]:.1f})"
            f"{middle / in_turn:>12.2f}{wall:>10.1f}{p50:>8.2f}{first:>9.2f}"
        )
    best = statistics.median(run.tokens_per_cpu_second for run in runs["32 at once"]) / in_turn
    print(f"  target: 32 at once >= {TARGET} x in turn: {'met' if best >= TARGET else 'MISSED'}")


async def _load(policy: Policy, clients: int, max_rows: int) -> Run:
    """Let so many clients ask one question each."""
    async with (
        PolicyServer(policy, name="smollm2", max_rows=max_rows) as server,
        AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        await client.models.list()
        wall, cpu = time.perf_counter(), time.process_time()
        asked = await asyncio.gather(*(_ask(client, q) for q in QUESTIONS[:clients]))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(count for count, _, _ in asked)
    return Run(
        tokens / cpu,
        tokens / wall,
        statistics.median(whole for _, _, whole in asked),
        statistics.median(first for _, first, _ in asked),
    )


async def _ask(client: AsyncOpenAI, question: str) -> tuple[int, float, float]:
    """Return tokens, seconds to the first piece of text, and seconds in all."""
    began, first, count = time.perf_counter(), 0.0, 0
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
        if chunk.usage is not None:
            count = chunk.usage.completion_tokens
    return count, first, time.perf_counter() - began


def _huggingface(policy: Policy) -> None:
    """One request through `generate`, warm: what one after the other would be without a server."""
    prompt = torch.tensor([render(policy.tokenizer, QUESTIONS[0])])
    policy.model.config.use_cache = True
    speeds = []
    for _ in range(REPEATS + 1):
        began = time.process_time()
        out = policy.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, do_sample=False
        )
        speeds.append((out.shape[1] - prompt.shape[1]) / (time.process_time() - began))
    policy.model.config.use_cache = False
    speeds = sorted(speeds[1:])
    print(
        f"Hugging Face generate, float32, alone: {statistics.median(speeds):.1f} tokens/CPU s "
        f"({speeds[0]:.1f}-{speeds[-1]:.1f})"
    )


def _policy(dtype: str) -> Policy:
    loaded = load_model("smollm2-135m")
    policy = make_policy(loaded.model, loaded.tokenizer, dtype=dtype)
    policy.model.requires_grad_(False)
    return policy


if __name__ == "__main__":
    asyncio.run(main())
