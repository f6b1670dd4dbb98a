"""Encodes attempts as token sequences, and pairs of them as batches whose prompts run once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from orbiter.train.agents.given_answers import GivenAnswers, streams_of
from orbiter.train.agents.streams import Stream
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.config import OnLongPrompt
from orbiter.train.engine.rollout import Rollout
from orbiter.train.errors import DataError
from orbiter.train.preference.pairs import Attempt, PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHOSEN, REJECTED = 0, 1
"""The sides of a pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedAttempt:
    """An attempt as token sequences: one, or several if its history was rewritten on the way."""

    attempt: Attempt
    streams: Sequence[Stream]

    @property
    def tokens(self) -> int:
        """Number of answer tokens, over all sequences."""
        return sum(sum(stream.mask) for stream in self.streams)

    @property
    def length(self) -> int:
        """Number of all tokens, prompts included."""
        return sum(len(stream.token_ids) for stream in self.streams)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(stream.token_ids) for stream in self.streams)

    @property
    def prompt(self) -> list[int]:
        """The tokens before the first answer."""
        first = self.streams[0]
        return first.token_ids[: first.prompt_length]

    @property
    def digest(self) -> str:
        """A hash of the tokens and of which of them are answers."""
        state = hashlib.blake2b(digest_size=16)
        for stream in self.streams:
            # The mask too: the same tokens with other answers are other training data.
            state.update(repr((stream.token_ids, stream.mask)).encode())
        return state.hexdigest()


class EncodedPair(NamedTuple):
    """The two sides of a pair as token sequences."""

    chosen: EncodedAttempt
    rejected: EncodedAttempt
    margin: float
    """Difference of the rewards; 0 if not known."""
    task: int
    """The number of the task; pairs of the same task are not independent."""

    @property
    def sides(self) -> tuple[EncodedAttempt, EncodedAttempt]:
        """The two attempts, the chosen one first."""
        return self.chosen, self.rejected

    @property
    def length(self) -> int:
        """Tokens that go through the model: a prompt that both sides share counts once."""
        # Only equal prompts are shared; other pairs pay for both.
        shared = len(self.chosen.prompt) if self.chosen.prompt == self.rejected.prompt else 0
        return self.chosen.length + self.rejected.length - shared


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBatch(Batch):
    """The sequences of several pairs, or of several single attempts.

    `unit` numbers the pairs, or the single attempts, from 0.
    """

    side: Int[Tensor, "B"]
    """CHOSEN or REJECTED; CHOSEN for a single attempt."""


class AttemptEncoder:
    """Encodes attempts for one model; those that do not fit are refused, left out or cut."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        attempts: Sequence[Attempt],
        *,
        context: int,
        longest_prompt: int | None = None,
        on_long_prompt: OnLongPrompt = "error",
        system: str | None = None,
    ) -> None:
        """Prepare to encode.

        Args:
            tokenizer: The tokenizer of the model in training.
            attempts: All attempts that will be encoded.
            context: Largest number of tokens of prompt and answer together.
            longest_prompt: Largest number of tokens of a prompt; None means the context.
            on_long_prompt: What happens to a longer prompt.
            system: The system prompt of every item; None keeps each item's own.
        """
        # By identity, since an item may occur in many pairs.
        items = list({id(item): item for each in attempts for item in each.items}.values())
        self._given = GivenAnswers(tokenizer, items, system=system)
        self._context, self._longest = context, longest_prompt or context
        self._on_long_prompt: OnLongPrompt = on_long_prompt
        self._encoded: dict[int, EncodedAttempt] = {}
        self.left_out = 0
        """Pairs or single attempts that did not fit."""
        self.cut = 0
        """Pairs or single attempts whose prompts were cut on the left."""

    def encode(self, together: Sequence[Attempt], what: str) -> list[EncodedAttempt] | None:
        """Encode attempts that belong together; None if they do not fit and are left out.

        If one of their prompts is cut, all are cut to the same length, so that they stay equal.

        Args:
            together: The two sides of a pair, or a single attempt.
            what: Names them in an error.

        Raises:
            DataError: one does not fit, and `on_long_prompt` is "error", or it is an episode, whose
                prompts cannot be cut.
        """
        # Encoded once, as an attempt may be in several pairs.
        whole = [self._whole(attempt) for attempt in together]
        excess = max(map(self._excess, whole))
        if excess <= 0:
            return whole
        if self._on_long_prompt == "drop":
            self.left_out += 1
            return None
        if self._on_long_prompt == "error":
            raise DataError(
                f"{what} does not fit: it has {excess} tokens more than a prompt may have "
                f"({self._longest}) or the model's context holds ({self._context}); state "
                f"{together[0].first.state[:60]!r}; shorten it, or set on_long_prompt='drop'"
            )
        if any(len(attempt.items) > 1 for attempt in together):
            raise DataError(
                f"{what} does not fit the model's context of {self._context} tokens, and "
                "on_long_prompt='truncate-left' cannot cut episodes, whose turns would no longer "
                "continue each other; use on_long_prompt='drop'"
            )
        # Both prompts lose the same number of tokens, so equal prompts stay equal.
        longest = max(len(each.prompt) for each in whole) - excess
        if longest < 1:
            self.left_out += 1
            return None
        self.cut += 1
        return [self._one_turn(attempt, longest) for attempt in together]

    def report(self, of: int) -> None:
        """Log how many did not fit; raise if none is left.

        Raises:
            DataError: all were left out.
        """
        if self.left_out or self.cut:
            log.warning(
                "%d of %d pairs or answers are too long: %d left out, %d cut on the left",
                *(self.left_out + self.cut, of, self.left_out, self.cut),
            )
        if self.left_out == of:
            raise DataError(f"nothing fits the model's context of {self._context} tokens")

    def _whole(self, attempt: Attempt) -> EncodedAttempt:
        if id(attempt) not in self._encoded:
            prompts = [self._given.prompt(item) for item in attempt.items]
            answers = [self._given.answer(item) for item in attempt.items]
            streams = streams_of(prompts, answers)
            if not streams:
                raise DataError(
                    f"an answer has no tokens to learn from (state {attempt.first.state[:60]!r})"
                )
            self._encoded[id(attempt)] = EncodedAttempt(attempt=attempt, streams=streams)
        return self._encoded[id(attempt)]

    def _one_turn(self, attempt: Attempt, longest: int) -> EncodedAttempt:
        """Encode a single answer with its prompt cut on the left."""
        prompt = self._given.prompt(attempt.first, longest)
        streams = streams_of([prompt], [self._given.answer(attempt.first)])
        return EncodedAttempt(attempt=attempt, streams=streams)

    def _excess(self, encoded: EncodedAttempt) -> int:
        """Return by how many tokens an attempt is too long."""
        # Two limits: the prompt's own, and that of the whole sequence.
        return max(len(encoded.prompt) - self._longest, encoded.longest - self._context)


def encode_pairs(encoder: AttemptEncoder, pairs: Sequence[PreferencePair]) -> list[EncodedPair]:
    """Encode pairs; those that do not fit are refused or left out.

    Raises:
        DataError: a pair does not fit and `on_long_prompt` is "error"; no pair is left; or the two
            sides of every pair are the same tokens.
    """
    encoded: list[EncodedPair] = []
    equal = 0
    for index, pair in enumerate(pairs):
        sides = encoder.encode(pair.sides, f"pair {index}")
        if sides is None:
            continue
        chosen, rejected = sides
        # Equal sides have no gradient, but would count as a pair of accuracy 0.
        if chosen.digest == rejected.digest:
            equal += 1
        else:
            encoded.append(EncodedPair(chosen, rejected, margin=pair.margin, task=pair.task))
    encoder.report(len(pairs))
    if equal:
        log.warning(
            "%d of %d pairs are left out: both answers are the same tokens", *(equal, len(pairs))
        )
    if not encoded:
        raise DataError(f"the two answers of all {equal} pairs are the same tokens")
    return encoded


def batch_of(
    units: Sequence[Sequence[EncodedAttempt]], device: torch.device | str | None = None
) -> AttemptBatch:
    """Return pairs, or single attempts, as a batch with one row for each token sequence.

    Rows with equal prompts have the same `group`, so the fast forward pass runs their prompt once.

    Args:
        units: The sides of each pair, the chosen one first; or lists of one attempt.
        device: Where the tensors are.
    """
    rows: list[Rollout] = []
    unit: list[int] = []
    side: list[int] = []
    for number, attempts in enumerate(units):
        for index, encoded in enumerate(attempts):
            for rollout in _rows(encoded):
                rows.append(rollout)
                unit.append(number)
                side.append(index)
    batch = collate(rows, device=device)
    place_of = batch.token_ids.device
    parts = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    return AttemptBatch(
        **parts | {"unit": torch.tensor(unit, device=place_of)},
        side=torch.tensor(side, device=place_of),
    )


def _rows(encoded: EncodedAttempt) -> Iterator[Rollout]:
    for stream in encoded.streams:
        yield Rollout(stream.token_ids, stream.mask, stream.logprobs, stream.prompt_length)
