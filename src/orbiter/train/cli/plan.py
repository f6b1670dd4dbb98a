"""What a training will take: steps, tokens, memory and time, told before a model is loaded.

The time is an estimate from the model's size and this machine's speed at multiplying, good to a
factor of about three. Left out: what rewards take, which only they know.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from orbiter.train.cli.job import Job
from orbiter.train.cli.outline import Outline, outline
from orbiter.train.cli.output import duration
from orbiter.train.engine.config import EngineConfig

BYTES_A_SECOND = 1e10
"""How fast weights are read while single tokens are drawn: an ordinary machine's memory."""
LAYER_SECONDS = 1.5e-4
"""What a layer costs a token drawn besides arithmetic."""
STEP_SECONDS = 0.02
"""What a step costs besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training in numbers; None where only the loaded model can tell."""

    method: str
    model: str
    items: int
    held_out: int
    steps: int
    updates: int
    tokens: int | None = None
    """Read, drawn and learned from at most, over the whole run."""
    longest_item: int | None = None
    """In tokens: its prompt, and for imitation its answer."""
    memory: str | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    computes: str | None = None
    """The dtype, the processor or accelerator, and the reason for the dtype."""

    def lines(self) -> list[tuple[str, str]]:
        """Say it in names and words."""
        later = "known when the model is here: this run will fetch it first"
        told = [
            ("method", self.method),
            ("model", self.model),
            ("data", f"{self.items} items, {self.held_out} held out"),
            ("steps", f"{self.steps} ({self.updates} updates)"),
            ("tokens", later if self.tokens is None else f"at most {self.tokens:,}"),
        ]
        if self.longest_item is not None:
            told.append(("longest item", f"{self.longest_item} tokens"))
        told.append(("computes", self.computes or later))
        told.append(("memory", self.memory or later))
        told.append(("time", later if self.seconds is None else f"about {duration(self.seconds)}"))
        return told


def make_plan(job: Job) -> Plan:
    """Count what a job will take.

    Raises:
        DataError: a prompt does not fit, and `on_long_prompt` is "error".
        StorageError: the model is a folder that holds none.
    """
    config: Any = job.trainer.config
    by_reward = job.method == "train"
    method = str(config.algorithm).upper() if by_reward else "SFT"
    reference = by_reward and config.kl_coef > 0
    found = outline(config, reference=reference, value_head=method == "PPO")
    lengths = None if found is None else _lengths(job, found)
    items = len(job.items) if lengths is None else len(lengths)
    steps = config.epochs * math.ceil(items / config.batch_size)
    plan = Plan(
        method=method,
        model=config.model,
        items=items,
        held_out=len(job.held_out or ()),
        steps=steps,
        updates=steps * _updates_a_step(config),
    )
    if found is None or lengths is None:
        return plan
    return _measured(plan, config, found, lengths, by_reward)


def _updates_a_step(config: Any) -> int:  # noqa: ANN401 - a config of either kind
    samples = config.batch_size * getattr(config, "group_size", 1)
    size = getattr(config, "minibatch_size", 0) or samples
    return int(getattr(config, "ppo_epochs", 1) * math.ceil(samples / size))


def _lengths(job: Job, found: Outline) -> list[int]:
    """Return each item's tokens as the run will see them: prompt, and for imitation answer."""
    from orbiter.train.engine.prompt import render, render_action, shorten
    from orbiter.train.engine.tasks import make_tasks
    from orbiter.train.trajectory import TrajectoryItem

    config, system = job.trainer.config, job.trainer.system_prompt
    tokenizer, context = found.tokenizer, found.policy.context_length
    imitates = job.method == "sft"

    def answer(item: TrajectoryItem) -> int:
        return len(render_action(tokenizer, item)) if imitates else config.max_response_length

    def encode(item: TrajectoryItem, longest: int | None) -> list[int]:
        if longest is None:
            return render(tokenizer, item, system=system)
        return shorten(tokenizer, item, longest, system=system)

    limit = config.max_prompt_length or context
    tasks = make_tasks(
        job.items,
        encode,
        room=lambda item: min(limit, context - answer(item)),
        on_long_prompt=config.on_long_prompt,
    )
    pairs = zip(tasks.items, tasks.prompts, strict=True)
    return [len(prompt) + (answer(item) if imitates else 0) for item, prompt in pairs]


def _measured(
    plan: Plan, config: EngineConfig, found: Outline, lengths: list[int], by_reward: bool
) -> Plan:
    from orbiter.train.engine.memory import GIB, memory_estimate
    from orbiter.train.engine.trainer import computes_on

    group = getattr(config, "group_size", 1)
    new = config.max_response_length if by_reward else 0
    prompts = min(config.batch_size, plan.items)
    memory = memory_estimate(
        found.policy,
        prompts=prompts,
        n=group,
        prompt_tokens=max(lengths),
        new_tokens=new,
        micro_batch_tokens=config.micro_batch_tokens,
    )
    if config.model != "tiny":  # its weights are here already
        memory = replace(memory, resident=memory.resident + found.weights)
    drawn, read = new * group * plan.items * config.epochs, sum(lengths) * config.epochs
    return replace(
        plan,
        tokens=drawn + read,
        longest_item=max(lengths),
        memory=f"about {memory.total / GIB:.1f} GiB at the peak",
        memory_bytes=memory.total,
        computes=computes_on(found.policy),
        seconds=_seconds(plan, config, found, read=read, drawn=drawn),
    )


def _seconds(plan: Plan, config: EngineConfig, found: Outline, *, read: int, drawn: int) -> float:
    """Estimate the whole run: arithmetic, reading weights while drawing, and overhead."""
    weights: int = sum(p.numel() for p in found.policy.model.parameters())
    layers: int = found.policy.model.config.num_hidden_layers
    speed = _operations_a_second(str(found.policy.device))
    passes = 3 * getattr(config, "ppo_epochs", 1) + (1 if drawn else 0)
    arithmetic = 2 * weights * (read + drawn) * passes / speed
    draws = plan.steps * config.max_response_length if drawn else 0
    drawing = draws * (weights * 4 / BYTES_A_SECOND + layers * LAYER_SECONDS)
    return arithmetic + drawing + plan.steps * STEP_SECONDS


def _operations_a_second(device: str) -> float:
    """Measure for a few milliseconds how fast matrices are multiplied here."""
    import torch

    side = 512 if device == "cpu" else 4096
    a = torch.ones(side, side, device=device)
    (a @ a).sum().item()
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < 0.05:
        (a @ a).sum().item()
        rounds += 1
    return float(2 * side**3 * rounds) / (time.perf_counter() - began)
