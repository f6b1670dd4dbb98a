"""verl's replay buffers, extended to report the mean of each reward.

verl 0.9.1 stores the additional values that a reward function returns with its score, but shows
them only for validation. A sampler set through its extension point
`trainer.v1.sampler.custom_sampler` returns metrics with every batch, which go to all of verl's
loggers; this class adds the rewards to them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from statistics import fmean, pstdev
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from orbiter.train.verl.cluster.inside.reward import PREFIX

POLL = "ORBITER_VERL_POLL_SECONDS"
"""Environment variable with the interval of checks for a complete batch; verl's is 2 seconds."""


class OwnInterval:
    """Sets the interval at which a buffer of verl looks for a complete batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept verl's arguments."""
        super().__init__(*args, **kwargs)
        if POLL in os.environ:
            self.poll_interval = float(os.environ[POLL])


class WithRewards(OwnInterval):
    """Adds the rewards of a batch to its metrics."""

    def sample(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, float]]:
        """Return verl's batch and metrics, with the rewards of the batch among the metrics."""
        batch, metrics = super().sample(*args, **kwargs)  # type: ignore[misc] # verl's
        # verl reports the rewards of a validation itself.
        if batch.partition_id != "val" and batch.keys:
            metrics = {**metrics, **reward_metrics(batch)}
        return batch, metrics


class NamedRewards(WithRewards, ReplayBuffer):  # type: ignore[misc] # verl is untyped here
    """verl's sampling, with the mean of every reward added to the metrics."""


class NamedRewardsAsync(WithRewards, ReplayBufferAsync):  # type: ignore[misc]
    """The same, of samples that may be older than the policy in training."""


def reward_metrics(batch: Any) -> dict[str, float]:
    """Return the spread of the total, the mean of each reward, and the number of faults."""
    fields = ["rm_scores", "extra_fields"]
    data = transfer_queue.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=fields
    )
    held: dict[str, list[float]] = defaultdict(list)
    for entry in data["extra_fields"]:
        extra = getattr(entry, "data", entry)
        for name, value in extra.get("reward_extra_info", {}).items():
            if name.startswith(PREFIX) or name == "reward_faults":
                held[name].append(float(value))
    totals = [float(score.sum()) for score in data["rm_scores"]]
    faults = sum(held.pop("reward_faults", [0.0]))
    means = {name: fmean(values) for name, values in held.items()}
    return {**means, "reward_std": pstdev(totals), "reward_faults": faults}
