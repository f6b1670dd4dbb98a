"""Measure in a few seconds how fast this machine runs the demo's model."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.trajectory import TrajectoryItem

ROWS = 32
TOKENS = 8
EXAM_ROWS = 200
"""Requests of a complete exam."""
PROBE_SHARE = 0.075
"""Duration of the probe relative to a complete exam of the SFT model, measured in both dtypes."""


async def exam_seconds(model: ModelTrainer, requests: Sequence[TrajectoryItem]) -> float:
    """Estimate how long one exam of 200 requests takes on this machine.

    Answers a few requests with a few tokens each, twice; the first time warms up.
    """
    asked = list(requests[:ROWS])
    await model.generate(asked[:4], max_response_length=2)
    began = perf_counter()
    await model.generate(asked, max_response_length=TOKENS)
    return (perf_counter() - began) / PROBE_SHARE
