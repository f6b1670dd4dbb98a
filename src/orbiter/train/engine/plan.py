"""A training in numbers: what a method asks of the model, and what a whole run will take.

`estimate.py` computes the numbers; this file loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a method asks of the model in one step."""

    method: str
    samples: int = 1
    """Answers sampled for each item."""
    new_tokens: int = 0
    """Longest sampled answer in tokens; 0 samples nothing and imitates the items' answers."""
    passes: int = 1
    """Passes over the samples of a step."""
    updates: int = 1
    """Optimiser updates of a step."""
    reference: bool = False
    """Whether a frozen copy of the model is kept."""
    value_head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """A training in numbers; None where only the loaded model can tell."""

    method: str
    model: str
    items: int
    held_out: int
    steps: int
    updates: int
    tokens: int | None = None
    """Upper bound of the tokens read, sampled and learned from in the whole run."""
    longest_item: int | None = None
    """In tokens: its prompt, and for imitation its answer."""
    memory: str | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    computes: str | None = None
    """The dtype, the processor or accelerator, and the reason for the dtype."""
