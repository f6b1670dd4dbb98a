"""The settings of a run: sizes, steps, seeds and the time budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """One run of the demo. The plan and the number of GRPO steps determine it."""

    model: str = "smollm2-135m"
    """The policy before training."""
    dtype: str = "auto"
    """Arithmetic of the forward and backward passes, see `EngineConfig.dtype`."""
    seed: int = 0
    """Seed of the split, the reference agent, the batches and the samples."""
    requests: int = 400
    """Number of the leaderboard's requests that are used."""
    shares: tuple[float, float, float] = (0.5, 0.22, 0.28)
    """Shares of the requests: held out for the exam; answered by the reference agent; left to the
    model's own attempts."""
    own_traces: int = 16
    """Requests that the untrained model answers too, in addition to the reference agent's."""
    validation: float = 0.25
    """Share of the good traces that decides when SFT stops."""
    batch_size: int = 8
    """Traces in an SFT update, and requests in a GRPO step."""
    group_size: int = 8
    """Calls that the model attempts for each request of a GRPO step."""
    sft_epochs: int = 4
    """Passes over the good traces; the best by validation loss is kept."""
    sft_learning_rate: float = 5e-5
    """AdamW's highest step size in SFT; it falls to 0 over the passes."""
    further_requests: int = 200
    """Further requests for the model's own attempts: those of functions that are not held out."""
    grpo_steps: int = 72
    """Maximum number of GRPO steps; a slow machine makes fewer, down to `MIN_STEPS`."""
    grpo_learning_rate: float = 4e-5
    """AdamW's highest step size in GRPO; it falls to 0 over the steps."""
    max_response_length: int = 64
    """Maximum tokens of a call; the longest right one of the training requests has fewer."""
    minutes: float = 14.0
    """Time budget in minutes, downloads apart; it decides how many GRPO steps are made."""
    control: bool = False
    """Whether SFT also gets the seconds that GRPO took, to compare both."""


QUICK = DemoPlan(
    model="tiny",
    requests=24,
    own_traces=2,
    batch_size=2,
    group_size=4,
    sft_epochs=1,
    sft_learning_rate=1e-3,
    further_requests=4,
    grpo_steps=6,
    grpo_learning_rate=1e-3,
    max_response_length=16,
)
"""Every stage within seconds, on a model too small to learn the task: for tests."""


MIN_STEPS = 16
"""With fewer GRPO steps the stage is not worthwhile; a slower machine takes longer instead."""

# What the stages cost, in units of one exam of an SFT model (200 requests, answered greedily).
# Measured in bfloat16 with AVX-512 and in float32 with AVX2: the ratios differ by less than 20 %.
FIXED_COST = 6.6
"""Capture, the exam before training, SFT with its exam, the exam after GRPO."""
STEP_COST = 0.225
"""One GRPO step of 8 requests x 8 attempts."""


class Estimate(NamedTuple):
    """How many GRPO steps fit into a run's time budget, and how long the run then takes."""

    steps: int
    minutes: float


def estimate(plan: DemoPlan, exam_seconds: float, *, elapsed: float | None = None) -> Estimate:
    """Choose the number of GRPO steps that fit into the plan's time budget.

    Args:
        plan: The run; `grpo_steps` is the upper limit.
        exam_seconds: How long this machine takes, or would take, for one exam of the SFT model.
        elapsed: Seconds spent on the stages before GRPO; None if they are still to come.
    """
    others = FIXED_COST * exam_seconds if elapsed is None else elapsed + exam_seconds
    one_step = STEP_COST * exam_seconds
    fitting = math.floor((60 * plan.minutes - others) / one_step)
    steps = min(plan.grpo_steps, max(MIN_STEPS, fitting))
    return Estimate(steps, (others + steps * one_step) / 60)
