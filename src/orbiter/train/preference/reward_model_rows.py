"""Turns attempts into the rows that a reward model scores, and scores them in batches.

The score is read at the end of an attempt's last turn: its prompt is the whole conversation as the
model saw it, so the end of the answer has seen everything. It is read where Transformers' sequence
classifiers read it, at the last token that is not padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.config import OnLongPrompt
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import value
from orbiter.train.preference.encoding import (
    AttemptBatch,
    AttemptEncoder,
    EncodedAttempt,
    EncodedPair,
    encode_pairs,
)
from orbiter.train.preference.pairs import Attempt, PreferencePair
from orbiter.train.preference.reward_model_quality import ScoredPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIRS_AT_ONCE = 32
"""Pairs that are scored between two checks for cancellation."""


@dataclass(slots=True, kw_only=True)
class Scorer:
    """A loaded reward model; used on the engine's thread only."""

    policy: Policy
    pad_token_id: int | None


class ScoreRow(NamedTuple):
    """One token sequence, up to the token whose state gives the score."""

    token_ids: list[int]
    prompt_length: int


def last_turn(attempt: Attempt) -> Attempt:
    """Return an attempt without its earlier turns, which its last prompt contains."""
    return Attempt(items=attempt.items[-1:], reward=attempt.reward)


def last_turns(pair: PreferencePair) -> PreferencePair:
    """Return a pair whose two sides are single turns."""
    return pair._replace(chosen=last_turn(pair.chosen), rejected=last_turn(pair.rejected))


def score_row(encoded: EncodedAttempt, pad_token_id: int | None) -> ScoreRow:
    """Return the row of an encoded attempt, which has one turn."""
    stream = encoded.streams[-1]
    end = len(stream.token_ids)
    # Where the pad token is also the end token, Transformers' classifiers read before it. A model
    # must get the same score here as there.
    while end > 1 and stream.token_ids[end - 1] == pad_token_id:
        end -= 1
    return ScoreRow(stream.token_ids[:end], min(stream.prompt_length, end))


def score_batch(
    units: Sequence[Sequence[ScoreRow]], device: torch.device | str | None = None
) -> AttemptBatch:
    """Return the rows of pairs, or single rows, as a batch with one scored position each.

    The engine gives the state before a trained token, so a token that is never read follows each
    row, and is the only one that counts as trained.
    """
    rows = [row for unit in units for row in unit]
    batch = collate(
        [
            Rollout(
                # Which token follows does not matter: only the state before it is read.
                token_ids=[*row.token_ids, 0],
                mask=[False] * len(row.token_ids) + [True],
                old_logprob=[0.0] * (len(row.token_ids) + 1),
                prompt_length=row.prompt_length,
            )
            for row in rows
        ],
        device=device,
    )
    parts = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    numbers = [number for number, unit in enumerate(units) for _ in unit]
    sides = [side for unit in units for side in range(len(unit))]
    return AttemptBatch(
        **parts | {"unit": torch.tensor(numbers, device=device)},
        side=torch.tensor(sides, device=device),
    )


def scores_of(policy: Policy, rows: Sequence[ScoreRow], *, micro_batch_tokens: int) -> list[float]:
    """Return the score of each row; equal prompts run once."""
    batch = score_batch([[row] for row in rows], policy.device)
    of_tokens = value(policy, batch, micro_batch_tokens=micro_batch_tokens)
    scores: list[float] = of_tokens.sum(dim=-1).tolist()
    return scores


def encoded_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    *,
    context: int,
    longest_prompt: int | None = None,
    on_long_prompt: OnLongPrompt = "error",
    system: str | None = None,
) -> list[EncodedPair]:
    """Encode the last turns of pairs.

    Args:
        tokenizer: The model's tokenizer.
        pairs: The pairs.
        context: The model's context length; one token of it is needed to read the score.
        longest_prompt: Largest number of tokens of a prompt; None means the context.
        on_long_prompt: What happens to a longer prompt.
        system: The system prompt of every item; None keeps each item's own.

    Raises:
        DataError: a pair does not fit and `on_long_prompt` is "error", or none is left.
    """
    turns = [last_turns(pair) for pair in pairs]
    encoder = AttemptEncoder(
        tokenizer,
        [side for pair in turns for side in pair.sides],
        context=context - 1,
        longest_prompt=longest_prompt,
        on_long_prompt=on_long_prompt,
        system=system,
    )
    return encode_pairs(encoder, turns)


async def score_pairs(
    scorer: Scorer, pairs: Sequence[EncodedPair], *, micro_batch_tokens: int
) -> list[ScoredPair]:
    """Score both sides of each pair without learning."""
    scored: list[ScoredPair] = []
    for first in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[first : first + PAIRS_AT_ONCE]
        rows = [score_row(side, scorer.pad_token_id) for pair in part for side in pair.sides]
        scores = await work(scores_of, scorer.policy, rows, micro_batch_tokens=micro_batch_tokens)
        scored += [
            _scored(pair, *scores[2 * index : 2 * index + 2]) for index, pair in enumerate(part)
        ]
    return scored


def _scored(pair: EncodedPair, chosen: float, rejected: float) -> ScoredPair:
    """Return a pair with its scores; where its rewards do not differ, they are 1 and 0."""
    rewards = pair.chosen.attempt.reward, pair.rejected.attempt.reward
    # A pair given without rewards says only which answer is better.
    if rewards[0] is None or rewards[1] is None or rewards[0] <= rewards[1]:
        rewards = 1.0, 0.0
    return ScoredPair(
        task=pair.task,
        chosen=chosen,
        rejected=rejected,
        chosen_reward=float(rewards[0] or 0.0),
        rejected_reward=float(rewards[1] or 0.0),
        answers=(pair.chosen.digest, pair.rejected.digest),
    )
