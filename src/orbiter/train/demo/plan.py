"""The settings of a run: sizes, steps, seeds and the time budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run of the demo. The plan, the seed and the number of GRPO passes determine it."""

    model: str = "smollm2-135m"
    """The policy before training."""
    dtype: str = "auto"
    """Arithmetic of the forward and backward passes, see `EngineConfig.dtype`."""
    seed: int = 0
    """Seed of the split, the reference agent, the batches and the samples."""
    requests: int = 400
    """How many of the leaderboard's requests take part."""
    shares: tuple[float, float, float] = (0.5, 0.22, 0.28)
    """Shares of the requests: held out for the exam; answered by the reference agent; left to the
    model's own attempts."""
    own_traces: int = 16
    """Requests that the untrained model answers too, captured beside the reference agent's."""
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
    grpo_epochs: int = 5
    """Most passes over the requests for the model's own attempts; a slow machine makes fewer."""
    grpo_learning_rate: float = 4e-5
    """AdamW's highest step size in GRPO; it falls to 0 over the passes."""
    temperature: float = 1.0
    """Sampling temperature in GRPO."""
    max_response_length: int = 64
    """Tokens in a call; the longest right one of the training requests has fewer."""
    minutes: float = 14.0
    """Time budget in minutes, downloads apart; it decides how many GRPO passes are made."""
    control: bool = False
    """Whether SFT also gets the seconds that GRPO took, to compare what each brings."""


QUICK = Plan(
    model="tiny",
    requests=24,
    own_traces=2,
    batch_size=2,
    group_size=4,
    sft_epochs=1,
    sft_learning_rate=1e-3,
    grpo_epochs=1,
    grpo_learning_rate=1e-3,
    max_response_length=16,
)
"""Every stage within seconds, on a model too small to learn the task: for tests."""


class Estimate(NamedTuple):
    """How long a run takes, and how many GRPO passes fit into its budget."""

    passes: int
    minutes: float


# What the stages cost, in units of one exam of an SFT model (200 requests, greedy). Measured in
# bfloat16 (AVX-512) and float32 (AVX2): the ratios differ by less than 15 % between the two.
FIXED_COST = 6.6
"""Capture, the exam before training, SFT with its exam, the exam after GRPO."""
STEP_COST = 0.225
"""One GRPO step of 8 requests x 8 attempts."""


def estimate(
    plan: Plan, exam_seconds: float, *, steps_per_pass: int, elapsed: float = 0.0
) -> Estimate:
    """Choose the number of GRPO passes that fit into the plan's time budget, at least one.

    Args:
        plan: The run; `grpo_epochs` is the upper limit.
        exam_seconds: How long this machine takes, or would take, for one exam of the SFT model.
        steps_per_pass: GRPO steps in one pass over the practice requests.
        elapsed: Seconds already spent, once the stages before GRPO are done; 0 at the start.
    """
    before = elapsed + exam_seconds if elapsed else FIXED_COST * exam_seconds
    one_pass = STEP_COST * exam_seconds * steps_per_pass
    fitting = math.floor((60 * plan.minutes - before) / one_pass) if one_pass else plan.grpo_epochs
    passes = max(1, min(plan.grpo_epochs, fitting))
    return Estimate(passes, (before + passes * one_pass) / 60)
