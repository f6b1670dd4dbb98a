"""A batch as packed tokens, none of them run twice.

Rows of a group share their prompt, and often how their answers begin: calls of one function all
start with its name, and a policy that has learned something says the same thing more than once.
What stands behind the same tokens has the same state, so every distinct beginning is run once,
however many rows go through it; a row without an end of its own costs nothing. The sums are those
of the padded batch, in another order. Left out: beginnings that different prompts share.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.batch import Batch


class Rectangle(NamedTuple):
    """Ragged rows inside a padded [R L] rectangle, and where they lie among the packed tokens."""

    real: Bool[Tensor, "R L"]
    cell: Int[Tensor, "N"]
    """Which cell of the flattened rectangle each packed token stands in; one of them, if several
    rows share it."""
    full: bool
    """No cell is padding or shared, so that packing is a view."""
    source: Int[Tensor, "C"] | None = None
    """The packed token of each cell; absent where no token stands in two."""

    @classmethod
    def of(cls, length: Int[Tensor, "R"]) -> Rectangle:
        """Lay rows of these lengths out."""
        longest = max(1, int(length.max()))
        real = torch.arange(longest, device=length.device) < length[:, None]
        cell = real.flatten().nonzero()[:, 0]
        return cls(real, cell, full=len(cell) == real.numel())

    def pad(self, packed: Float[Tensor, "N heads D"]) -> Float[Tensor, "R heads L D"]:
        """Spread packed tokens over the rectangle; what stands in padding is never looked at."""
        rows, longest = self.real.shape
        if self.source is not None:
            # An embedding, since its way back adds up in the same order every time.
            padded = functional.embedding(self.source, packed.flatten(1))
            return padded.view(rows, longest, *packed.shape[1:]).transpose(1, 2)
        if not self.full:
            blank = packed.new_zeros(rows * longest, *packed.shape[1:])
            packed = blank.index_copy(0, self.cell, packed)
        return packed.view(rows, longest, *packed.shape[1:]).transpose(1, 2)

    def pack(self, padded: Float[Tensor, "R heads L D"]) -> Float[Tensor, "N heads*D"]:
        """Gather one cell of each packed token again."""
        rows, heads, longest, width = padded.shape
        flat = padded.transpose(1, 2).reshape(rows * longest, heads * width)
        return flat if self.full else flat[self.cell]


class Answers(NamedTuple):
    """The distinct answers of a batch: a tree on each prompt, laid out as one row a branch."""

    rectangle: Rectangle
    prompt: Int[Tensor, "R"]
    """Which prompt each distinct row answers."""
    token_ids: Int[Tensor, "R L"]
    row: Int[Tensor, "B"]
    """The distinct row of each row of the batch."""
    token: Int[Tensor, "R L"]
    """The packed token of each real cell."""

    @classmethod
    def of(
        cls, prompt: Int[Tensor, "B"], token_ids: Int[Tensor, "B L"], length: Int[Tensor, "B"]
    ) -> Answers:
        """Find the distinct rows; in their lexical order, equal beginnings stand together."""
        along = torch.arange(token_ids.shape[1], device=token_ids.device)
        ended = token_ids.masked_fill(along >= length[:, None], -1)
        keyed, row = torch.cat([prompt[:, None], ended], dim=1).unique(dim=0, return_inverse=True)
        real = keyed[:, 1:] >= 0
        as_above = torch.zeros_like(real)
        as_above[1:] = (keyed[1:] == keyed[:-1]).cumprod(dim=1)[:, 1:].bool()
        own = real & ~as_above
        number = (own.flatten().cumsum(0) - 1).view(own.shape)
        index = torch.arange(len(own), device=own.device)[:, None]
        token = number.gather(0, index.where(own, 0).cummax(dim=0).values).masked_fill(~real, 0)
        cell = own.flatten().nonzero()[:, 0]
        shared = bool((real & as_above).any())
        rectangle = Rectangle(
            real,
            cell,
            full=len(cell) == real.numel(),
            source=token.flatten() if shared else None,
        )
        return cls(rectangle, keyed[:, 0], keyed[:, 1:].clamp(min=0), row, token)


class Packing(NamedTuple):
    """A batch as packed tokens: each prompt once, then each beginning of an answer once.

    The last token of a row is left out, unless another row goes on behind it: nobody asks what
    comes next.
    """

    token_ids: Int[Tensor, "N"]
    position: Int[Tensor, "N"]
    asked: Int[Tensor, "M"]
    """The packed tokens behind which a token is scored."""
    target: Int[Tensor, "M"]
    """The token that is scored there."""
    trained: Int[Tensor, "K"]
    """Which of the M is which trained token, in the mask's row order."""
    prompt_of_row: Int[Tensor, "R"]
    prompts: Rectangle
    answers: Rectangle

    @classmethod
    def of(cls, batch: Batch) -> Packing:
        """Pack a batch."""
        device = batch.token_ids.device
        numbers, prompt = batch.group.unique(return_inverse=True)
        leader = torch.zeros_like(numbers).scatter_(
            0, prompt, torch.arange(len(batch.group), device=device)
        )
        prompts = Rectangle.of(batch.prompt_length[leader])
        room = (batch.length - batch.prompt_length - 1).clamp(min=0)
        along = torch.arange(max(1, int(room.max())), device=device)
        behind = (batch.prompt_length[:, None] + along).clamp(max=batch.token_ids.shape[1] - 1)
        answers = Answers.of(prompt, batch.token_ids.gather(1, behind), room)
        start = batch.prompt_length[leader][answers.prompt]
        in_prompt = torch.arange(prompts.real.shape[1], device=device).expand_as(prompts.real)
        prompt_ids = batch.token_ids[leader, : prompts.real.shape[1]]
        cell = answers.rectangle.cell
        return cls(
            torch.cat([prompt_ids[prompts.real], answers.token_ids.flatten()[cell]]),
            torch.cat([in_prompt[prompts.real], (start[:, None] + along).flatten()[cell]]),
            *_scored(batch, prompt, prompts, answers),
            prompt_of_row=answers.prompt,
            prompts=prompts,
            answers=answers.rectangle,
        )


def _scored(
    batch: Batch, prompt: Int[Tensor, "B"], prompts: Rectangle, answers: Answers
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the packed token in front of each trained one; score equal pairs of the two once."""
    row, column = batch.mask.nonzero(as_tuple=True)
    length = prompts.real.sum(dim=1)
    in_prompt = (length.cumsum(0) - length)[prompt[row]] + column - 1
    place = (column - 1 - batch.prompt_length[row]).clamp(min=0, max=answers.token.shape[1] - 1)
    in_answer = len(prompts.cell) + answers.token[answers.row[row], place]
    before = in_prompt.where(column <= batch.prompt_length[row], in_answer)
    size = int(batch.token_ids.max()) + 1
    pair, trained = (before * size + batch.token_ids[row, column]).unique(return_inverse=True)
    return pair // size, pair % size, trained
