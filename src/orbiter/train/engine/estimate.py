"""Estimate a training's steps, tokens, memory and time before a model is loaded.

The time is estimated from the model's size and this machine's measured speed of matrix products,
to within a factor of about three. The time spent in reward functions is not included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from orbiter.train.engine.config import EngineConfig
from orbiter.train.engine.memory import GIB, memory_estimate
from orbiter.train.engine.models.load import TINY
from orbiter.train.engine.models.outline import Outline, make_outline
from orbiter.train.engine.models.teacher import (
    TeacherNames,
    make_teacher_outline,
    require_context,
    require_same_tokenizer,
)
from orbiter.train.engine.plan import TrainPlan, Workload
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.prompt import render, shorten
from orbiter.train.engine.tasks import make_tasks
from orbiter.train.trajectory import TrajectoryItem

BYTES_A_SECOND = 1e10
"""Speed at which weights are read during sampling: that of an ordinary machine's memory."""
LAYER_SECONDS = 1.5e-4
"""Overhead of one layer for one sampled token."""
STEP_SECONDS = 0.02
"""Overhead of one step."""


def make_plan(
    config: EngineConfig,
    workload: Workload,
    items: Sequence[TrajectoryItem],
    *,
    held_out: int,
    system: str | None,
    lengths: Callable[[Outline, Sequence[TrajectoryItem]], list[int] | None],
) -> TrainPlan:
    """Estimate a training on `items`; `held_out` is the number of items to evaluate on.

    `lengths` returns the tokens of each sequence to train on; None if prompts are answered instead.

    Raises:
        DataError: a prompt does not fit, and `on_long_prompt` is "error".
        StorageError: the model is a folder that does not hold a model.
    """
    outline = make_outline(config, reference=workload.reference, value_head=workload.value_head)
    tokens = None if outline is None else lengths(outline, items)
    if tokens is None and outline is not None:
        tokens = _prompt_lengths(config, workload, items, outline, system)
    count = len(items) if tokens is None else len(tokens)
    steps = config.epochs * math.ceil(count / config.batch_size)
    plan = TrainPlan(
        method=workload.method,
        model=config.model,
        items=count,
        held_out=held_out,
        steps=steps,
        updates=steps * workload.updates,
    )
    if outline is None or tokens is None:
        return plan
    return _measured(plan, config, workload, outline, tokens)


def _prompt_lengths(
    config: EngineConfig,
    workload: Workload,
    items: Sequence[TrajectoryItem],
    outline: Outline,
    system: str | None,
) -> list[int]:
    """Return the number of tokens of each prompt that is to be answered."""

    def encode(item: TrajectoryItem, longest: int | None) -> list[int]:
        if longest is None:
            return render(outline.tokenizer, item, system=system)
        return shorten(outline.tokenizer, item, longest, system=system)

    limit = config.max_prompt_length or outline.context_length
    room = min(limit, outline.context_length - workload.new_tokens)
    tasks = make_tasks(
        items,
        encode,
        room=lambda item: room,  # noqa: ARG005 - the same for all
        on_long_prompt=config.on_long_prompt,
    )
    return [len(prompt) for prompt in tasks.prompts]


def _measured(
    plan: TrainPlan,
    config: EngineConfig,
    workload: Workload,
    outline: Outline,
    lengths: Sequence[int],
) -> TrainPlan:
    """Return the plan with tokens, memory and time filled in."""
    teacher = _teacher_outline(config, workload, outline)
    memory = memory_estimate(
        outline,
        prompts=min(config.batch_size, plan.items),
        n=workload.samples,
        prompt_tokens=max(lengths),
        new_tokens=workload.new_tokens,
        trained_tokens=workload.trained_tokens,
        micro_batch_tokens=config.micro_batch_tokens,
        teacher=teacher if workload.compares_heads else None,
    )
    if teacher is not None and workload.teacher != TINY:
        memory = replace(memory, resident=memory.resident + teacher.weights)
    if config.model != TINY:  # its weights are in memory already
        memory = replace(memory, resident=memory.resident + outline.weights)
    # An upper bound: answers may end early.
    sampled = workload.new_tokens * workload.samples * plan.items * config.epochs
    read = sum(lengths) * config.epochs
    return replace(
        plan,
        tokens=sampled + read,
        longest_item=max(lengths),
        memory=f"about {memory.total / GIB:.1f} GiB at the peak",
        memory_bytes=memory.total,
        computes=outline.computes,
        seconds=_seconds(plan, workload, outline, read=read, sampled=sampled)
        + (0.0 if teacher is None else reading_seconds(teacher, read + sampled, workload.passes)),
    )


def _teacher_outline(config: EngineConfig, workload: Workload, student: Outline) -> Outline | None:
    """Return the outline of the teacher; None without a teacher, or if it is not on this machine.

    Raises:
        ConfigError: its tokenizer is not the student's, or its context is shorter.
        StorageError: there is no such model.
    """
    if workload.teacher is None:
        return None
    teacher = make_teacher_outline(config, workload.teacher)
    if teacher is not None:
        names = TeacherNames(workload.teacher, config.model)
        require_same_tokenizer(names, student.tokenizer, teacher.tokenizer)
        longest = student.context_length
        if config.max_prompt_length is not None:
            longest = min(longest, config.max_prompt_length + workload.new_tokens)
        require_context(names, longest, teacher.context_length)
    return teacher


def _seconds(
    plan: TrainPlan, workload: Workload, outline: Outline, *, read: int, sampled: int
) -> float:
    """Estimate the run's seconds: arithmetic, reading weights during sampling, and overhead."""
    draws = plan.steps * workload.new_tokens
    arithmetic = step_seconds(
        outline, read=read, sampled=sampled, draws=draws, passes=workload.passes
    )
    # step_seconds already contains the overhead of one step.
    return arithmetic + (plan.steps - 1) * STEP_SECONDS


def step_seconds(
    of: Outline | Policy, *, read: int, sampled: int, draws: int, passes: int
) -> float:
    """Estimate the seconds of a step, to within a factor of about three.

    Args:
        of: The model.
        read: Tokens that are only read.
        sampled: Tokens that are drawn.
        draws: Tokens that are drawn one after the other; rows of a batch are drawn together.
        passes: Training passes over all tokens.
    """
    weights: int = sum(p.numel() for p in of.model.parameters())
    layers: int = of.model.config.num_hidden_layers
    speed = _operations_a_second(str(of.device))
    forward = 3 * passes + (1 if sampled else 0)  # a backward pass costs two forward passes
    # A product with a weight costs one multiplication and one addition per weight and token.
    arithmetic = 2 * weights * (read + sampled) * forward / speed
    # Sampling is bound by memory: each draw reads all weights once, however many rows there are.
    sampling = draws * (weights * 4 / BYTES_A_SECOND + layers * LAYER_SECONDS)
    return arithmetic + sampling + STEP_SECONDS


def reading_seconds(of: Outline | Policy, tokens: int, passes: int) -> float:
    """Estimate the seconds in which a model reads tokens `passes` times without learning."""
    weights: int = sum(p.numel() for p in of.model.parameters())
    return 2 * weights * tokens * passes / _operations_a_second(str(of.device))


def _operations_a_second(device: str) -> float:
    """Measure for 50 milliseconds how fast this machine multiplies matrices."""
    side = 512 if device == "cpu" else 4096
    a = torch.ones(side, side, device=device)
    # The first product generates kernels; item() waits until an accelerator has finished.
    (a @ a).sum().item()
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < 0.05:
        (a @ a).sum().item()
        rounds += 1
    return float(2 * side**3 * rounds) / (time.perf_counter() - began)
