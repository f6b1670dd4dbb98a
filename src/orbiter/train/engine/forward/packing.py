"""Pack a batch into tokens that each run through the model only once.

Rows of a group share their prompt, and often the beginning of their answers: calls of the same
function all start with its name, and a trained policy repeats itself. Positions with identical
preceding tokens have identical hidden states, so every distinct prefix runs once, however many rows
share it. A row that is a prefix of another adds no cost. Sums are taken over the same terms as in
the padded batch, in a different order. Prefixes shared by different prompts are not merged;
episodes, whose prompts often begin with the same tools, choose their prompts accordingly
(`shared_beginnings` in `agents/streams.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.batch import Batch


class Rectangle(NamedTuple):
    """Rows of different lengths in a padded [R L] tensor, mapped to and from packed tokens."""

    real: Bool[Tensor, "R L"]
    cell: Int[Tensor, "N"]
    """Index of each packed token in the flattened rectangle; if several rows share the token, the
    index of one of them."""
    full: bool
    """Whether no cell is padding or shared, so that packing is a view."""
    source: Int[Tensor, "C"] | None = None
    """Packed token of each cell; None if no token is shared."""

    @classmethod
    def of(cls, length: Int[Tensor, "R"]) -> Rectangle:
        """Make the rectangle for rows of these lengths."""
        longest = max(1, int(length.max()))
        real = torch.arange(longest, device=length.device) < length[:, None]
        cell = real.flatten().nonzero()[:, 0]
        return cls(real, cell, full=len(cell) == real.numel())

    def pad(self, packed: Float[Tensor, "N heads D"]) -> Float[Tensor, "R heads L D"]:
        """Spread packed tokens over the rectangle; the values in the padding are never used."""
        rows, longest = self.real.shape
        if self.source is not None:
            # Use an embedding, because its backward pass sums in the same order every time.
            padded = functional.embedding(self.source, packed.flatten(1))
            return padded.view(rows, longest, *packed.shape[1:]).transpose(1, 2)
        if not self.full:
            blank = packed.new_zeros(rows * longest, *packed.shape[1:])
            # index_copy, not assignment by mask: its backward is a plain gather.
            packed = blank.index_copy(0, self.cell, packed)
        return packed.view(rows, longest, *packed.shape[1:]).transpose(1, 2)

    def pack(self, padded: Float[Tensor, "R heads L D"]) -> Float[Tensor, "N heads*D"]:
        """Undo `pad`: gather one cell for each packed token."""
        rows, heads, longest, width = padded.shape
        flat = padded.transpose(1, 2).reshape(rows * longest, heads * width)
        return flat if self.full else flat[self.cell]


class DistinctAnswers(NamedTuple):
    """The distinct answers of a batch, one row each, with shared prefixes marked."""

    rectangle: Rectangle
    prompt: Int[Tensor, "R"]
    """Index of the prompt of each distinct row."""
    token_ids: Int[Tensor, "R L"]
    row: Int[Tensor, "B"]
    """Index of the distinct row for each row of the batch."""
    token: Int[Tensor, "R L"]
    """Packed token of each cell that is not padding."""

    @classmethod
    def of(
        cls, prompt: Int[Tensor, "B"], token_ids: Int[Tensor, "B L"], length: Int[Tensor, "B"]
    ) -> DistinctAnswers:
        """Find the distinct rows, sorted so that rows with equal prefixes are adjacent."""
        along = torch.arange(token_ids.shape[1], device=token_ids.device)
        # An empty answer still needs one column, or the rectangle would have no width.
        # Padding becomes -1, which no token is, so that rows of different lengths differ.
        ended = token_ids.masked_fill(along >= length[:, None], -1)
        keyed, row = torch.cat([prompt[:, None], ended], dim=1).unique(dim=0, return_inverse=True)
        real = keyed[:, 1:] >= 0
        # `unique` sorts, so a row shares its longest prefix with the row above. The product stays 1
        # up to the first difference.
        as_above = torch.zeros_like(real)
        # Column 0 of `keyed` is the prompt, so rows of different prompts never share a prefix.
        as_above[1:] = (keyed[1:] == keyed[:-1]).cumprod(dim=1)[:, 1:].bool()
        own = real & ~as_above
        # Number the cells that run through the model; a shared cell takes the number of the nearest
        # row above that owns one in its column.
        number = (own.flatten().cumsum(0) - 1).view(own.shape)
        index = torch.arange(len(own), device=own.device)[:, None]
        # cummax carries the index of the last row that owns a cell down the column.
        token = number.gather(0, index.where(own, 0).cummax(dim=0).values).masked_fill(~real, 0)
        cell = own.flatten().nonzero()[:, 0]
        shared = bool((real & as_above).any())
        rectangle = Rectangle(
            real,
            cell,
            full=len(cell) == real.numel(),
            source=token.flatten() if shared else None,
        )
        # Token ids of padding become 0 again; no cell in the padding is packed.
        return cls(rectangle, keyed[:, 0], keyed[:, 1:].clamp(min=0), row, token)


class Packing(NamedTuple):
    """A batch as packed tokens: each prompt once, then each distinct answer prefix once.

    The last token of a row is left out unless another row continues after it, since no prediction
    is needed there.
    """

    token_ids: Int[Tensor, "N"]
    position: Int[Tensor, "N"]
    asked: Int[Tensor, "M"]
    """Indices of the packed tokens after which a token is scored."""
    target: Int[Tensor, "M"]
    """Token scored after each of them."""
    trained: Int[Tensor, "K"]
    """For each trained token, in the mask's row order, its index among the M scored ones."""
    prompt_of_row: Int[Tensor, "R"]
    prompts: Rectangle
    answers: Rectangle

    @classmethod
    def of(cls, batch: Batch) -> Packing:
        """Pack a batch of rollouts."""
        device = batch.token_ids.device
        numbers, prompt = batch.group.unique(return_inverse=True)
        # Any row of a group can lend its prompt, since they are all equal.
        leader = torch.zeros_like(numbers).scatter_(
            0, prompt, torch.arange(len(batch.group), device=device)
        )
        prompts = Rectangle.of(batch.prompt_length[leader])
        # One less: the last token predicts nothing that is trained on.
        room = (batch.length - batch.prompt_length - 1).clamp(min=0)
        along = torch.arange(max(1, int(room.max())), device=device)
        # Rows shorter than the longest would read past the end; the clamped cells are padding.
        behind = (batch.prompt_length[:, None] + along).clamp(max=batch.token_ids.shape[1] - 1)
        answers = DistinctAnswers.of(prompt, batch.token_ids.gather(1, behind), room)
        start = batch.prompt_length[leader][answers.prompt]
        in_prompt = torch.arange(prompts.real.shape[1], device=device).expand_as(prompts.real)
        prompt_ids = batch.token_ids[leader, : prompts.real.shape[1]]
        cell = answers.rectangle.cell
        return cls(
            torch.cat([prompt_ids[prompts.real], answers.token_ids.flatten()[cell]]),
            # An answer's positions continue those of its prompt, so the rotary table sees one
            # sequence.
            torch.cat([in_prompt[prompts.real], (start[:, None] + along).flatten()[cell]]),
            *_scored(batch, prompt, prompts, answers),
            prompt_of_row=answers.prompt,
            prompts=prompts,
            answers=answers.rectangle,
        )


def _scored(
    batch: Batch, prompt: Int[Tensor, "B"], prompts: Rectangle, answers: DistinctAnswers
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the packed token before each trained token; equal pairs of the two appear once."""
    row, column = batch.mask.nonzero(as_tuple=True)
    length = prompts.real.sum(dim=1)
    in_prompt = (length.cumsum(0) - length)[prompt[row]] + column - 1
    # Clamped for tokens that the prompt predicts; `where` below discards the clamped index.
    offset = (column - 1 - batch.prompt_length[row]).clamp(min=0, max=answers.token.shape[1] - 1)
    in_answer = len(prompts.cell) + answers.token[answers.row[row], offset]
    # The first token of an answer is predicted by the last one of its prompt.
    before = in_prompt.where(column <= batch.prompt_length[row], in_answer)
    size = int(batch.token_ids.max()) + 1
    # State and token as one number, so that `unique` finds pairs that several rows share.
    pair, trained = (before * size + batch.token_ids[row, column]).unique(return_inverse=True)
    return pair // size, pair % size, trained
