"""Records for planning a run: the work of one step, and the estimated cost of the whole run.

`estimate.py` computes the numbers; this file does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The work that one step of a method requires of the model."""

    method: str
    samples: int = 1
    """Answers sampled for each item."""
    new_tokens: int = 0
    """Longest sampled answer in tokens; 0 means that the items' answers are imitated instead."""
    passes: int = 1
    """Training passes over the samples of a step."""
    updates: int = 1
    """Optimiser updates per step."""
    reference: bool = False
    """Whether a frozen copy of the model is kept."""
    value_head: bool = False
    trained_tokens: int | None = None
    """Tokens of each sequence that the vocabulary head scores; None means all."""
    teacher: str | None = None
    """A second model in this process that reads every sample."""
    compares_heads: bool = False
    """Whether the teacher's whole distributions are compared in every update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """The estimated cost of a training; fields are None if they depend on an absent model."""

    method: str
    model: str
    items: int
    held_out: int
    steps: int
    updates: int
    tokens: int | None = None
    """Upper bound of the tokens read, sampled and learned from in the whole run."""
    longest_item: int | None = None
    """Length in tokens of the longest prompt, including the answer for imitation."""
    memory: str | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    computes: str | None = None
    """The dtype, the processor or accelerator, and the reason for the dtype."""
    judge_calls: int | None = None
    """Calls of the models that judge, if every answer is readable; None without a judge."""
    judge_max_cost: float | None = None
    """The judges' max_cost together; None where one has no limit."""
