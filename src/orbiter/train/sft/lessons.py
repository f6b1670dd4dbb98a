"""Turns items into token sequences to imitate: one for each stream of an episode.

`agents/given_answers.py` encodes each answer. The turns of an episode that continue each other are
one sequence, in which every assistant turn is trained on; items without an episode are sequences by
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orbiter.train.agents.given_answers import GivenAnswers, streams_of
from orbiter.train.agents.logged import by_episode
from orbiter.train.agents.streams import GIVEN, Stream
from orbiter.train.engine.tasks import Tasks, make_tasks
from orbiter.train.sft.config import SFTConfig
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """The sequences to imitate."""

    items: Tasks
    """The items that are imitated, with their prompts."""
    streams: Sequence[Stream]
    """Token sequences; the tokens of the answers are those to train on."""
    first: Sequence[TrajectoryItem]
    """The item that each sequence begins with."""
    weights: Sequence[Sequence[float]] | None
    """The weight of each token; None means 1."""

    @property
    def order(self) -> Tasks:
        """The sequences as tasks, to draw the order of training from."""
        return Tasks(list(self.first), [[]] * len(self.first))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(stream.token_ids) for stream in self.streams)

    @property
    def most_trained(self) -> int:
        """Most trained tokens of a sequence."""
        return max(sum(stream.mask) for stream in self.streams)


def make_lessons(
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[TrajectoryItem],
    config: SFTConfig,
    *,
    context: int,
    system: str | None,
) -> Lessons:
    """Encode items as sequences to imitate.

    A system prompt of the config or an agent replaces the one that was captured, so with one
    everything is rendered.

    Args:
        tokenizer: The tokenizer of the model in training.
        items: The items, in any order.
        config: The settings.
        context: Largest number of tokens of prompt and answer together.
        system: The system prompt of every item; None keeps each item's own.

    Raises:
        DataError: an item does not fit and `on_long_prompt` is "error", or no item is left.
    """
    given = GivenAnswers(tokenizer, items, system=system)
    answers = {id(item): given.answer(item) for item in items}
    limit = config.max_prompt_length or context
    tasks = make_tasks(
        items,
        given.prompt,
        # A prompt may be cut, but never the answer, which is what is imitated.
        room=lambda item: min(limit, context - len(answers[id(item)])),
        on_long_prompt=config.on_long_prompt,
    )
    return _joined_lessons(tasks, [answers[id(item)] for item in tasks.items], config)


def _joined_lessons(tasks: Tasks, answers: Sequence[list[int]], config: SFTConfig) -> Lessons:
    """Join the turns of each episode, and weight their tokens."""
    rewards = _weights(tasks.items) if config.reward_weighted else None
    streams: list[Stream] = []
    first: list[TrajectoryItem] = []
    weights: list[list[float]] = []
    for positions in by_episode(tasks.items):
        prompts = [tasks.prompts[position] for position in positions]
        for stream in streams_of(prompts, [answers[position] for position in positions]):
            streams.append(stream)
            first.append(tasks.items[positions[0]])
            if rewards is not None:
                each = [rewards[position] for position in positions]
                # Tokens of prompts and tool results belong to no turn and are not trained on.
                weights.append([0.0 if turn == GIVEN else each[turn] for turn in stream.turn])
    return Lessons(
        items=tasks,
        streams=streams,
        first=first,
        weights=weights if rewards is not None else None,
    )


def _weights(items: Sequence[TrajectoryItem]) -> list[float] | None:
    """Return the reward of each item, divided by their mean."""
    rewards = [item.reward or 0.0 for item in items]
    mean = sum(rewards) / len(rewards)
    return [reward / mean for reward in rewards] if mean else None
