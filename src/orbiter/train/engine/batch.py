"""Many rollouts as rectangles: `Batch`, its making and its slicing.

Every [B, T] stream is aligned with `token_ids`: entry t speaks about the token at t, given the
tokens before it. The shift by one that a causal model needs happens inside the forward pass and
nowhere else. Padding stands on the right and is told by `length`, never by a token id: the pad
token of many chat models is also their end of turn. Left out: packing; the fast forward pass
packs by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.engine.rollout import Rollout
from orbiter.train.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B sequences of up to T tokens, and what is known about each of their tokens."""

    token_ids: Int[Tensor, "B T"]
    """Prompts and what followed; 0 behind a sequence's end."""
    length: Int[Tensor, "B"]
    """Tokens of each sequence; what stands at and behind that index is padding."""
    prompt_length: Int[Tensor, "B"]
    """Tokens of each prompt."""
    group: Int[Tensor, "B"]
    """Rows with the same number share their prompt."""
    mask: Bool[Tensor, "B T"]
    """True means "train on this token"."""
    sampled_logprob: Float[Tensor, "B T"]
    """What the sampler recorded, in nats; 0 where `mask` is False."""
    old_logprob: Float[Tensor, "B T"] | None = None
    """The policy before this update; None means that it is the present one, so the ratio is 1."""
    ref_logprob: Float[Tensor, "B T"] | None = None
    """The frozen reference, for the KL."""
    advantage: Float[Tensor, "B T"] | None = None
    return_: Float[Tensor, "B T"] | None = None
    """What the value function should have said."""
    old_value: Float[Tensor, "B T"] | None = None
    """What the value function did say before this update."""
    weight: Float[Tensor, "B T"] | None = None
    """How much a token counts when it is imitated; None means 1."""

    def select(self, rows: Int[Tensor, "R"]) -> Batch:
        """Return the rows asked for, cut to the longest of them."""
        longest = int(self.length[rows].max())
        picked: dict[str, Any] = {}
        for field in fields(self):
            stream: Tensor | None = getattr(self, field.name)
            if stream is not None:
                stream = stream[rows, :longest] if stream.ndim == 2 else stream[rows]
            picked[field.name] = stream
        return Batch(**picked)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            stream: Tensor | None = getattr(self, field.name)
            moved[field.name] = None if stream is None else stream.to(device)
        return Batch(**moved)


def collate(
    rollouts: Sequence[Rollout],
    *,
    advantage: Float[Tensor, "B"] | Float[Tensor, "B T"] | None = None,
    device: torch.device | str | None = None,
) -> Batch:
    """Pad the rollouts on the right into one `Batch`; an advantage a row is spread over its mask.

    Rows whose prompts are equal, token by token, get the same `group`, whoever made them.
    """
    if not rollouts:
        raise DataError("there is nothing to collate: no rollouts")
    longest = max(len(rollout.token_ids) for rollout in rollouts)
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [tuple(rollout.token_ids[: rollout.prompt_length]) for rollout in rollouts]
    mask = _pad([rollout.mask for rollout in rollouts], longest, torch.bool)
    if bool(mask[:, 0].any()):
        raise DataError(
            "the first token of a sequence is given, not chosen: its mask must be False"
        )
    if advantage is not None and advantage.ndim == 1:
        advantage = advantage[:, None] * mask
    batch = Batch(
        token_ids=_pad([rollout.token_ids for rollout in rollouts], longest, torch.long),
        length=torch.tensor([len(rollout.token_ids) for rollout in rollouts]),
        prompt_length=torch.tensor([rollout.prompt_length for rollout in rollouts]),
        group=torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in prompts]),
        mask=mask,
        sampled_logprob=_pad([rollout.old_logprob for rollout in rollouts], longest, torch.float32),
        advantage=None if advantage is None else advantage.float(),
    )
    return batch if device is None else batch.to(device)


def minibatches(batch: Batch, size: int, *, seed: int) -> list[Batch]:
    """Cut the batch into parts of about `size` rows, in an order drawn from `seed`.

    Rows that share a prompt stay together while their group fits into `size`, which spares the
    update the prompt; larger groups are cut. The last part may be smaller.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[int]] = [[]]
    for number in torch.randperm(int(batch.group.max()) + 1, generator=generator).tolist():
        rows = (batch.group == number).nonzero()[:, 0].cpu()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        if len(parts[-1]) + min(len(rows), size) > size:
            parts.append([])
        for row in rows.tolist():
            if len(parts[-1]) == size:
                parts.append([])
            parts[-1].append(row)
    device = batch.token_ids.device
    return [batch.select(torch.tensor(part, device=device)) for part in parts if part]


def _pad(rows: Sequence[Sequence[float]], longest: int, dtype: torch.dtype) -> Tensor:
    """Lay ragged rows into one rectangle; zeros behind the short ones."""
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)
