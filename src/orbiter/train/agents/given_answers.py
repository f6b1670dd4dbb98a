"""Encodes the items of a data set as prompts and answers to learn from.

A captured answer is encoded as the token ids that the server sampled, if they belong to the model's
tokenizer. Any other answer is written by the chat template, in the form in which the model would
sample it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orbiter.train.agents.logged import LoggedTurn, why_unusable
from orbiter.train.agents.streams import Stream, turns_to_streams
from orbiter.train.engine.prompt import render, shorten
from orbiter.train.engine.turn_end import render_action
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class GivenAnswers:
    """Encodes items as prompts and answers, by their captured token ids where these are usable."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[TrajectoryItem],
        *,
        system: str | None,
    ) -> None:
        """Check the items' captured token ids, and log how many are used.

        Args:
            tokenizer: The tokenizer of the model in training.
            items: All items that will be encoded.
            system: The system prompt of every item; None keeps each item's own. With one,
                everything is rendered, since captured ids contain another prompt.
        """
        self._tokenizer, self._system = tokenizer, system
        self._sampled = _sampled(tokenizer, items) if system is None else frozenset[int]()

    def answer(self, item: TrajectoryItem) -> list[int]:
        """Return an item's answer as token ids, with the token that ends the turn."""
        # By identity: two equal items need not both be captured from this model.
        if id(item) in self._sampled:
            return list(item.token_ids or ())
        return render_action(self._tokenizer, item)

    def prompt(self, item: TrajectoryItem, longest: int | None = None) -> list[int]:
        """Return an item's prompt as token ids, cut on the left to at most `longest` of them."""
        if id(item) in self._sampled:
            prompt = list(item.prompt_token_ids or ())
            return prompt if longest is None else prompt[-longest:]
        if longest is None:
            return render(self._tokenizer, item, system=self._system)
        return shorten(self._tokenizer, item, longest, system=self._system)


def streams_of(prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Stream]:
    """Return the turns of one episode as token sequences in which every answer is trained on."""
    turns = [
        # Log probabilities are not used in imitation, so zeros do.
        LoggedTurn(prompt, answer, [0.0] * len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return turns_to_streams(turns)


def _sampled(tokenizer: PreTrainedTokenizerBase, items: Sequence[TrajectoryItem]) -> frozenset[int]:
    """Return the items whose captured token ids are used, by identity."""
    captured = [item for item in items if item.token_ids is not None]
    reasons = {id(item): why_unusable(tokenizer, item) for item in captured}
    refused = Counter(reason for reason in reasons.values() if reason is not None)
    if captured:
        log.info(
            "%d of %d answers are learned by their captured token ids, the others as the chat "
            "template writes them",
            *(sum(reasons[id(item)] is None for item in captured), len(items)),
        )
    for reason, count in refused.most_common(1):
        log.warning("the token ids of %d captured answers are not used: %s", count, reason)
    return frozenset(key for key, reason in reasons.items() if reason is None)
