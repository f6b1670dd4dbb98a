"""Pad rollouts into the rectangular tensors of a `Batch`, and slice it into minibatches.

Every [B, T] tensor is aligned with `token_ids`: entry t describes the token at position t, given
the tokens before it. The shift by one that a causal model needs happens only inside the forward
pass. Sequences are padded on the right. `length` marks where the padding begins, not a token id,
because the pad token of many chat models is also their end of turn. Packing is not done here; the
fast forward pass does its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.engine.rollout import Rollout
from orbiter.train.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B sequences of up to T tokens, with the training data of each token."""

    token_ids: Int[Tensor, "B T"]
    """Prompt and answer of each sequence; 0 in the padding."""
    length: Int[Tensor, "B"]
    """Number of tokens in each sequence; positions from this index on are padding."""
    prompt_length: Int[Tensor, "B"]
    """Number of tokens in each prompt."""
    group: Int[Tensor, "B"]
    """Rows with the same number share their prompt."""
    mask: Bool[Tensor, "B T"]
    """True means "train on this token"."""
    sampled_logprob: Float[Tensor, "B T"]
    """Log probability recorded by the sampler, in nats; 0 where `mask` is False."""
    old_logprob: Float[Tensor, "B T"] | None = None
    """Log probability under the policy before this update; None means the current policy, which
    makes the ratio 1."""
    ref_logprob: Float[Tensor, "B T"] | None = None
    """Log probability under the frozen reference, for the KL term."""
    advantage: Float[Tensor, "B T"] | None = None
    return_: Float[Tensor, "B T"] | None = None
    """Return of each token: the target of the value function."""
    old_value: Float[Tensor, "B T"] | None = None
    """Prediction of the value function before this update."""
    teacher_logprob: Float[Tensor, "B T"] | None = None
    """Log probability under a teacher that gives no more than that."""
    weight: Float[Tensor, "B T"] | None = None
    """Weight of each token in the loss of imitation or distillation; None means 1."""
    unit: Int[Tensor, "B"] | None = None
    """Rows with the same number enter the loss together, such as the two sides of a pair, and are
    never separated into different micro-batches; None means that each row is alone."""

    def select(self, rows: Int[Tensor, "R"]) -> Self:
        """Return the given rows, cut to the longest of them."""
        # Cut here, or a minibatch of short rows would pay for the padding of the longest one.
        longest = int(self.length[rows].max())
        picked: dict[str, Any] = {}
        for field in fields(self):
            stream: Tensor | None = getattr(self, field.name)
            if stream is not None:
                stream = stream[rows, :longest] if stream.ndim == 2 else stream[rows]
            picked[field.name] = stream
        return type(self)(**picked)

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on `device`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            stream: Tensor | None = getattr(self, field.name)
            moved[field.name] = None if stream is None else stream.to(device)
        return type(self)(**moved)


def collate(
    rollouts: Sequence[Rollout],
    *,
    advantage: Float[Tensor, "B"] | Float[Tensor, "B T"] | None = None,
    device: torch.device | str | None = None,
) -> Batch:
    """Pad the rollouts on the right into one `Batch`.

    One advantage per row is given to all trained tokens of that row. Rows whose prompts are equal
    token by token get the same `group`.
    """
    if not rollouts:
        raise DataError("there is nothing to collate: no rollouts")
    longest = max(len(rollout.token_ids) for rollout in rollouts)
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [tuple(rollout.token_ids[: rollout.prompt_length]) for rollout in rollouts]
    mask = _pad([rollout.mask for rollout in rollouts], longest, torch.bool)
    # Its log probability would need a token before it, which no forward pass has.
    if bool(mask[:, 0].any()):
        raise DataError(
            "the first token of a sequence is given, not chosen: its mask must be False"
        )
    if advantage is not None and advantage.ndim == 1:
        # Expand by the mask, so that prompt and tool tokens carry no advantage even before the
        # loss.
        advantage = advantage[:, None] * mask
    batch = Batch(
        token_ids=_pad([rollout.token_ids for rollout in rollouts], longest, torch.long),
        length=torch.tensor([len(rollout.token_ids) for rollout in rollouts]),
        prompt_length=torch.tensor([rollout.prompt_length for rollout in rollouts]),
        # Numbers are given in order of appearance, so equal rollouts give equal batches
        # everywhere.
        group=torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in prompts]),
        mask=mask,
        # The record stays float32, whatever the policy's dtype: its difference from the current
        # log probability is exponentiated.
        sampled_logprob=_pad([rollout.old_logprob for rollout in rollouts], longest, torch.float32),
        advantage=None if advantage is None else advantage.float(),
    )
    return batch if device is None else batch.to(device)


def minibatches(batch: Batch, size: int, *, seed: int) -> list[Batch]:
    """Cut the batch into parts of about `size` rows, in an order drawn from `seed`.

    Rows that share a prompt stay together if their group fits into `size`, so that the update runs
    their prompt only once; larger groups are cut. The last part may be smaller.
    """
    # A generator private to this call, so that user code drawing random numbers cannot change the
    # order.
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[int]] = [[]]
    for number in torch.randperm(int(batch.group.max()) + 1, generator=generator).tolist():
        # On the CPU, where the generator draws: the order must not depend on the device.
        rows = (batch.group == number).nonzero()[:, 0].cpu()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        # A group that would straddle the end of a part begins a new one instead.
        if len(parts[-1]) + min(len(rows), size) > size:
            parts.append([])
        for row in rows.tolist():
            if len(parts[-1]) == size:
                parts.append([])
            parts[-1].append(row)
    device = batch.token_ids.device
    return [batch.select(torch.tensor(part, device=device)) for part in parts if part]


def _pad(rows: Sequence[Sequence[float]], longest: int, dtype: torch.dtype) -> Tensor:
    """Pad rows of different lengths with zeros on the right into one tensor."""
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)
