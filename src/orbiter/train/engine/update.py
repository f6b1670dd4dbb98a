"""Take one optimiser step on a batch, or score a batch without learning.

A batch of any size is processed in micro-batches within a token budget. Each contributes its exact
share of the loss, so the split affects only memory. A long prompt whose answers need several
micro-batches runs once, ahead of them. The loss itself is in `objective.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.forward.generic import Forward, place
from orbiter.train.engine.optimiser import Optimiser
from orbiter.train.engine.policy import Policy
from orbiter.train.errors import DataError, StateError, TrainingError

MICRO_BATCH_TOKENS = 2048
"""Tokens in one forward and backward pass: enough to keep the cores busy, and fits in memory."""
WORTH_HOLDING = 256
"""Prompt tokens that must be saved for a separate pass, which has less work for each weight."""


class Scored(NamedTuple):
    """The training policy's scores for a batch; 0 where the mask is False."""

    logprob: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    value: Float[Tensor, "B T"] | None
    """Value of the state in which the token was chosen; None without a value head."""
    divergence: Float[Tensor, "B T"] | None = None
    """From the teacher, in nats; None unless the objective compares with one."""


class Part(NamedTuple):
    """A micro-batch's share of the whole batch, which weights the means over it."""

    tokens: float
    """Its share of the trained tokens, in [0, 1]."""
    rows: float
    """Its share of the rows that have a trained token, in [0, 1]."""


class Objective(Protocol):
    """A loss for an update to minimise."""

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's contribution to the loss, and metrics as means over its tokens."""

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Return which rows have no effect on the loss and need not be computed."""


@runtime_checkable
class ScoringObjective(Objective, Protocol):
    """A loss that needs more of the forward pass than `score` returns."""

    def score(self, policy: Policy, batch: Batch, *, temperature: float) -> Scored:
        """Return the policy's scores for a batch, with gradients."""


def update(
    policy: Policy,
    batch: Batch,
    optimiser: Optimiser,
    objective: Objective,
    *,
    max_grad_norm: float = 1.0,
    temperature: float = 1.0,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> dict[str, float]:
    """Take one optimiser step on the whole batch and return its metrics.

    The metrics are those of the objective, as means over the tokens that were computed, and "loss",
    "grad_norm" (before clipping) and "tokens" (trained tokens, including idle rows). If every row
    is idle, nothing is computed, no step is taken, and only these three are returned.

    Raises:
        TrainingError: the loss or the gradient is not finite; the weights are unchanged.
    """
    tokens, rows_trained = int(batch.mask.sum()), int(batch.mask.any(dim=-1).sum())
    if tokens == 0:
        raise DataError("the batch has no token to train on: its mask is False everywhere")
    # Idle rows still count in `tokens`: they are part of the mean, with a loss of zero.
    busy = (batch.mask.any(dim=-1) & ~objective.idle(batch)).nonzero()[:, 0]
    # Each micro-batch adds its share of the whole batch's mean, so the gradient does not depend on
    # how the batch was cut.
    loss, seen, totals = 0.0, 0, dict[str, Tensor]()
    scorer = objective.score if isinstance(objective, ScoringObjective) else score
    optimiser.zero()
    for rows, forward in micro_batches(policy.forward, batch, busy, micro_batch_tokens):
        part = batch.select(rows)
        trained = int(part.mask.sum())
        # Shares sum to 1 over the parts only if no row is idle, which is right: idle rows add 0.
        share = Part(tokens=trained / tokens, rows=len(rows) / rows_trained)
        scored = scorer(replace(policy, forward=forward), part, temperature=temperature)
        contribution, metrics = objective(scored, part, share)
        # Checked before backward: a NaN must not reach the gradients that earlier parts left.
        loss += _finite(contribution)
        # Gradients of all parts add up in the same tensors until the optimiser's step.
        contribution.backward()
        seen += trained
        for name, metric in metrics.items():
            # Weighted by tokens and summed on the CPU, so that parts of different sizes count
            # fairly.
            totals[name] = totals.get(name, torch.zeros(())) + metric.detach().cpu() * trained
    norm = optimiser.step(max_grad_norm=max_grad_norm)
    means = {name: float(total) / seen for name, total in totals.items()}
    return means | {"loss": loss, "grad_norm": norm, "tokens": float(tokens)}


def score(policy: Policy, batch: Batch, *, temperature: float = 1.0) -> Scored:
    """Return the policy's log probabilities, entropy and values for a batch, with gradients."""
    scores = policy.forward.score(batch, temperature=temperature)
    value = None
    if policy.value_head is not None:
        # The value is read from the same states as the log probability: the state before the
        # token.
        value = place(policy.value_head(scores.hidden)[:, 0], batch.mask)
    return Scored(
        logprob=place(scores.tokens.logprob, batch.mask),
        entropy=place(scores.tokens.entropy, batch.mask),
        value=value,
    )


def logprob(
    policy: Policy,
    batch: Batch,
    *,
    temperature: float = 1.0,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> Float[Tensor, "B T"]:
    """Return the current policy's log probability of every trained token, in nats."""

    def numbers_of(forward: Forward, part: Batch) -> Tensor:
        return forward.score(part, temperature=temperature).tokens.logprob

    return _in_micro_batches(policy.forward, batch, numbers_of, micro_batch_tokens)


def ref_logprob(
    policy: Policy,
    batch: Batch,
    *,
    temperature: float = 1.0,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> Float[Tensor, "B T"]:
    """Return the frozen reference's log probability of every trained token, in nats."""
    with policy.reference() as forward:

        def numbers_of(forward: Forward, part: Batch) -> Tensor:
            return forward.score(part, temperature=temperature).tokens.logprob

        return _in_micro_batches(forward, batch, numbers_of, micro_batch_tokens)


def value(
    policy: Policy, batch: Batch, *, micro_batch_tokens: int = MICRO_BATCH_TOKENS
) -> Float[Tensor, "B T"]:
    """Return the value of the state before each trained token, without the vocabulary head."""
    head = policy.value_head
    if head is None:
        raise StateError("this policy has no value head: make it with value_head=True")

    def numbers_of(forward: Forward, part: Batch) -> Tensor:
        values: Tensor = head(forward.hidden(part))[:, 0]
        return values

    return _in_micro_batches(policy.forward, batch, numbers_of, micro_batch_tokens)


@torch.no_grad()
def _in_micro_batches(
    forward: Forward,
    batch: Batch,
    numbers_of: Callable[[Forward, Batch], Tensor],
    micro_batch_tokens: int,
) -> Float[Tensor, "B T"]:
    """Run `numbers_of` over the batch in micro-batches and assemble the results."""
    answer = torch.zeros(batch.mask.shape, device=batch.mask.device)
    trained = batch.mask.any(dim=-1).nonzero()[:, 0]
    for rows, by in micro_batches(forward, batch, trained, micro_batch_tokens):
        part = batch.select(rows)
        # A part may be narrower than the batch, because `select` cuts it to its longest row.
        answer[rows, : part.mask.shape[1]] = place(numbers_of(by, part), part.mask)
    return answer


class MicroBatch(NamedTuple):
    """Rows of a batch that go through the model together."""

    rows: Int[Tensor, "R"]
    forward: Forward
    """What runs them: the policy's forward pass, or that of their answers after a held prompt."""


def micro_batches(
    forward: Forward, batch: Batch, rows: Int[Tensor, "R"], micro_batch_tokens: int
) -> Iterator[MicroBatch]:
    """Cut rows into micro-batches of at most `micro_batch_tokens` tokens, but at least one row.

    Rows of a unit are never separated, so a micro-batch also holds at least one unit. Groups stay
    together if they fit, since the fast path runs a shared prompt once. If a group does not fit,
    its prompt runs once, ahead of its micro-batches, which get what `room_beside` leaves them. The
    caller takes the gradient of a micro-batch before it asks for the next one; after the last one
    of a group the gradient of its prompt is added.
    """
    # Rows of a group become neighbours, so that a cut separates as few of them as possible.
    # Stable, so that the order of rows within a group does not depend on the device.
    rows = rows[torch.argsort(batch.group[rows], stable=True)]
    if batch.unit is not None:
        rows = _units_together(batch.unit, rows)
    cost = forward.cost(batch)
    alone = _too_long(batch, rows, cost, micro_batch_tokens)
    answer = batch.length - batch.prompt_length
    for group, places in groupby(range(len(rows)), key=alone.__getitem__):
        together = rows[list(places)]
        first = together[0]
        prompt = batch.token_ids[first, : int(batch.prompt_length[first])]
        if group is None:
            of_row, limit = cost[together].tolist(), micro_batch_tokens
        else:
            of_row, limit = answer[together].tolist(), room_beside(len(prompt), micro_batch_tokens)
        parts = list(_split(batch, together, of_row, limit))
        if group is not None and batch.unit is None:
            # As many parts of equal size, since the largest one sets the memory.
            even = -(-sum(of_row) // len(parts)) + max(of_row) - 1
            parts = list(_split(batch, together, of_row, min(limit, even)))
        saved = (len(parts) - 1) * len(prompt)
        worth_it = group is not None and saved >= WORTH_HOLDING
        held = forward.hold(prompt) if worth_it else None
        for part in parts:
            yield MicroBatch(part, held.forward if held else forward)
        if held and torch.is_grad_enabled():
            held.backward()


def room_beside(prompt: int, micro_batch_tokens: int) -> int:
    """Return how many tokens of answers run together after a prompt that is held meanwhile.

    Half of a micro-batch at least, so that a prompt of its length leaves some.
    """
    return max(micro_batch_tokens - prompt, micro_batch_tokens // 2)


def _too_long(
    batch: Batch, rows: Int[Tensor, "R"], cost: Int[Tensor, "B"], micro_batch_tokens: int
) -> list[int | None]:
    """Return for each row its group if that does not fit into a micro-batch, else None."""
    unit = batch.unit
    # A part of a batch keeps the groups' numbers, which may be larger than its number of rows.
    numbers, group = batch.group[rows].unique(return_inverse=True)
    total = torch.zeros_like(numbers).index_add_(0, group, cost[rows])
    alone = (total > micro_batch_tokens)[group]
    if unit is not None:
        # A unit with rows of two groups would be separated.
        pairs = torch.stack([unit[rows], group]).unique(dim=1)[0]
        of_one = (torch.bincount(pairs) == 1)[unit[rows]]
        alone &= bool(of_one.all())
    return [
        number if long else None
        for number, long in zip(group.tolist(), alone.tolist(), strict=True)
    ]


def _split(
    batch: Batch, rows: Int[Tensor, "R"], cost: Sequence[int], micro_batch_tokens: int
) -> Iterator[Int[Tensor, "r"]]:
    """Cut rows, in this order, where the next unit would exceed the budget."""
    unit = range(len(rows)) if batch.unit is None else batch.unit[rows].tolist()
    first, used = 0, 0
    for _, places in groupby(range(len(rows)), key=lambda place: unit[place]):
        inside = list(places)
        begin = inside[0]
        tokens = sum(cost[place] for place in inside)
        # The unit as a whole begins a new part, even if that leaves the current one half full.
        if begin > first and used + tokens > micro_batch_tokens:
            yield rows[first:begin]
            first, used = begin, 0
        used += tokens
    if first < len(rows):
        yield rows[first:]


def _units_together(unit: Int[Tensor, "B"], rows: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Make the rows of a unit neighbours; units come in the order of their first rows."""
    place: dict[int, int] = {}
    order = [place.setdefault(number, len(place)) for number in unit[rows].tolist()]
    return rows[torch.argsort(torch.tensor(order, device=rows.device), stable=True)]


def _finite(contribution: Tensor) -> float:
    """Return the loss as a float, or raise before it can reach the weights."""
    number = float(contribution.detach())
    if not math.isfinite(number):
        raise TrainingError(
            f"the loss is {number}: the run has diverged; lower learning_rate, and look for "
            "extreme rewards"
        )
    return number
