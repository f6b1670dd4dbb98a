"""verl's replay buffer for episodes: counts them, drops failed ones, sets weights and update sizes.

verl's trainer asks the buffer for a step's rows, through the extension point
`trainer.v1.sampler.custom_sampler`, and then computes advantages and updates. In between, this
class writes what makes the loss that of the local backend (`batches.py`) into verl's own field for
weights, `rollout_is_weights`, by which verl multiplies each token's loss.

One thing has no extension point: an update of verl takes a fixed number of rows, and episodes that
branch make more rows than episodes. The buffer gets a method of the trainer (`refill_fn`), and
through it reaches the trainer's configuration, where it sets the size for each step.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from orbiter.train.errors import CallbackError, TrainError
from orbiter.train.storage import write_file
from orbiter.train.verl.cluster.inside.agent_loop import EPISODE
from orbiter.train.verl.cluster.inside.batches import (
    EVALUATION,
    EpisodeRow,
    Sifted,
    rows_of_an_update,
    sift,
)
from orbiter.train.verl.cluster.inside.reward import note_fault
from orbiter.train.verl.cluster.inside.sampler import OwnInterval
from orbiter.train.verl.cluster.inside.shipment import FAULTS, read_shipment
from orbiter.train.verl.play import refuse_failures
from orbiter.train.verl.samples import GROUPS_KEPT

SAMPLES = "samples"
"""Folder of the episodes that are logged, one file for each step."""
PING_SECONDS = 5.0
"""Interval at which the workers that run agents are asked whether they live."""
WEIGHTS = "rollout_is_weights"
"""verl's field for weights of tokens."""


class WholeEpisodes(OwnInterval):
    """Sorts out the episodes of a batch that a buffer of verl has sampled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept verl's arguments."""
        super().__init__(*args, **kwargs)
        shipment = Path(kwargs["sampler_kwargs"]["shipment"])
        self._folder, self._shipment = shipment.parent, read_shipment(shipment)
        self._config = self._shipment.config
        # The way to the trainer that the docstring of this file explains.
        self._trainer = kwargs["refill_fn"].__self__
        self._pings: dict[int, Any] = {}
        self._pinged = 0.0

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        """Return verl's batch without failed episodes, and its metrics with those of episodes."""
        batch, metrics = super().sample(  # type: ignore[misc] # verl's
            global_steps=global_steps, partition_id=partition_id, batch_size=batch_size
        )
        if not batch.keys:
            return batch, metrics
        try:
            sifted = self._sifted(batch)
        except TrainError as error:
            note_fault(self._folder / FAULTS, error)
            raise
        tags = dict(zip(batch.keys, batch.tags, strict=True))
        if sifted.dropped:
            # Otherwise the next step would find these rows again.
            transfer_queue.kv_clear(keys=sifted.dropped, partition_id=partition_id)
        batch = type(batch)(
            partition_id=partition_id, keys=sifted.kept, tags=[tags[key] for key in sifted.kept]
        )
        # A validation is only measured: no weights and no padding.
        if partition_id == "val":
            self._keep(EVALUATION.format(step=global_steps), json.dumps(sifted.metrics))
            return batch, metrics
        self._keep_samples(global_steps, sifted)
        return self._weighted(batch, sifted), {**metrics, **sifted.metrics}

    def _sifted(self, batch: Any) -> Sifted:
        """Sort out the rows of a batch.

        Raises:
            CallbackError: too many episodes failed, or none is left to train on.
        """
        data = transfer_queue.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
        )
        # verl wraps values that are not tensors.
        extra = [getattr(entry, "data", entry) for entry in data["extra_fields"]]
        rows = [
            EpisodeRow(key, json.loads(each[EPISODE]))
            for key, each in zip(batch.keys, extra, strict=True)
        ]
        sifted = sift(rows, self._config, validates=batch.partition_id == "val")
        refuse_failures(sifted.failures, sifted.episodes, self._config.max_failed_share)
        if not sifted.kept:
            raise CallbackError(
                f"none of the {sifted.episodes} episodes of a step or validation counts: "
                f"{len(sifted.failures)} failed, and the others got no reward or were left out by "
                "on_truncation='mask'"
            )
        return sifted

    def _weighted(self, batch: Any, sifted: Sifted) -> Any:
        """Pad the rows to whole updates, and write the weight of each token."""
        config, actor = self._trainer.config, self._trainer.config.actor_rollout_ref.actor
        size = self._config.minibatch_size or self._config.samples_per_step
        updates = self._config.samples_per_step // size
        rows = rows_of_an_update(
            len(batch.keys),
            updates=updates,
            workers=self._shipment.workers,
            group_size=self._config.group_size,
        )
        end = self._trainer.tokenizer.eos_token_id
        batch = upsample_batch_to_divisible_size(batch, rows * updates, end)
        # In prompts, by which verl counts.
        actor.ppo_mini_batch_size = rows // self._config.group_size
        if self._trainer.use_critic:
            config.critic.ppo_mini_batch_size = actor.ppo_mini_batch_size
        weights = [
            torch.full((int(tag["response_len"]),), sifted.weight.get(key, 0.0))
            for key, tag in zip(batch.keys, batch.tags, strict=True)
        ]
        # Jagged, as verl's own fields of answers are.
        nested = torch.nested.as_nested_tensor(weights, layout=torch.jagged)
        transfer_queue.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({WEIGHTS: nested}, batch_size=len(weights)),
        )
        return batch

    def _keep_samples(self, step: int, sifted: Sifted) -> None:
        """Write some of the step's episodes for the process that started the job."""
        lines = [json.dumps(group) for group in sifted.groups[:GROUPS_KEPT]]
        self._keep(f"{step}.jsonl", "\n".join(lines))

    def _keep(self, name: str, text: str) -> None:
        folder = self._folder / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, f"{text}\n".encode())

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        """Wait as verl does, which would go on for ever if a worker had died."""
        if time.monotonic() - self._pinged > PING_SECONDS:
            self._pinged = time.monotonic()
            try:
                self._check_workers()
            except TrainError as error:
                note_fault(self._folder / FAULTS, error)
                raise
        waited: float = super()._wait_for_next_poll(  # type: ignore[misc] # verl's
            partition_id, last_debug_time
        )
        return waited

    def _check_workers(self) -> None:
        """Make sure that the workers that run agents live.

        Raises:
            CallbackError: one has died; says why, as far as Ray knows.
        """
        workers = self._trainer.agent_loop_manager.agent_loop_workers
        for number, worker in enumerate(workers):
            ping = self._pings.get(number) or worker.__ray_ready__.remote()
            self._pings[number] = ping
            # Without waiting: a worker that is busy answers at a later poll.
            answered, _ = ray.wait([ping], timeout=0)
            if answered:
                del self._pings[number]
                try:
                    ray.get(ping)
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split())
                    raise CallbackError(
                        f"the worker {number} of {len(workers)} that runs the agent died during "
                        f"its episodes: {reason[:600]}"
                    ) from error


class EpisodeBatches(WholeEpisodes, ReplayBuffer):  # type: ignore[misc] # verl is untyped here
    """verl's sampling, of whole episodes."""


class EpisodeBatchesAsync(WholeEpisodes, ReplayBufferAsync):  # type: ignore[misc]
    """The same, of episodes that may be older than the policy in training."""
