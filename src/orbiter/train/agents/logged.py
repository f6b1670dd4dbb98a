"""Reads captured items as turns and episodes, with the tokens that the server sampled.

A captured item has token ids if the server gave them. They are used only if they belong to the
tokenizer of the model in training, which is checked: they must spell the item's own answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from orbiter.train.agents.streams import Stream, turns_to_streams
from orbiter.train.chat.tool_calls import name_of
from orbiter.train.chat.transcript import content_of
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 3
"""Items that an error names."""
FAILED = "episode_error"
"""The metadata entry of an item whose episode failed."""


class LoggedTurn(NamedTuple):
    """One captured answer, in the form that `turns_to_streams` reads."""

    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """0 if they were not captured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEpisode:
    """One captured attempt at a task, as token sequences to train on."""

    items: Sequence[TrajectoryItem]
    """Its items in the order of their steps."""
    streams: Sequence[Stream]
    reward: float

    @property
    def task(self) -> str:
        """The key of its group: the task's id, or else the first item's state."""
        first = self.items[0]
        return first.state if first.task_id is None else f"task_id {first.task_id}"

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy drew, over all streams."""
        return sum(sum(stream.mask) for stream in self.streams)


class Logged(NamedTuple):
    """Captured episodes, and how many could not be used."""

    episodes: list[LoggedEpisode]
    left_out: Mapping[str, int]
    """Episodes by the reason for which they were left out."""


def by_episode(items: Sequence[TrajectoryItem]) -> list[list[int]]:
    """Return the positions of each episode's items in the order of their steps.

    An item without an episode is alone. Episodes come in the order of their first items.
    """
    groups: dict[object, list[int]] = {}
    for position, item in enumerate(items):
        key = position if item.episode_id is None else item.episode_id
        groups.setdefault(key, []).append(position)
    for positions in groups.values():
        # the sort is stable, so items without a step keep their order
        # Items without a step come first.
        positions.sort(key=lambda position: items[position].step or 0)
    return list(groups.values())


def why_unusable(
    tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem, *, logprobs: bool = False
) -> str | None:
    """Return why the captured ids of an item cannot be trained on; None if they can.

    Args:
        tokenizer: The tokenizer of the model in training.
        item: The captured item.
        logprobs: Whether the log probabilities of the sampled tokens are needed too.
    """
    if not item.prompt_token_ids or not item.token_ids:
        return "it has no token ids: capture it from a server that returns them"
    if logprobs and (item.logprobs is None or len(item.logprobs) != len(item.token_ids)):
        return "it has no log probability for each sampled token"
    # A logarithm of a probability is at most 0; the tolerance is for the server's rounding.
    if logprobs and max(item.logprobs or ()) > 1e-3:
        return f"a log probability is {max(item.logprobs or ()):g}, above 0"
    size = len(tokenizer)
    # Another id would fail in the embedding, with an error that does not name the item.
    captured = (*item.prompt_token_ids, *item.token_ids)
    unknown = next((each for each in (min(captured), max(captured)) if not 0 <= each < size), None)
    if unknown is not None:
        return f"it has the token id {unknown}, and this model's tokenizer knows {size} tokens"
    # Both spellings: special tokens may be part of a call, or stand between words.
    raw: str = tokenizer.decode(list(item.token_ids), skip_special_tokens=False)
    spelled: str = tokenizer.decode(list(item.token_ids), skip_special_tokens=True)
    if missing := _missing_words(item, (raw, spelled)):
        return (
            f"its token ids are of another tokenizer: here they spell {spelled[:60]!r}, and the "
            f"answer says {missing[:60]!r}"
        )
    return None


def logged_episodes(
    items: Sequence[TrajectoryItem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    logprobs: bool,
    failed_too: bool = False,
) -> Logged:
    """Read captured items as episodes to train on, without rendering anything again.

    An episode's reward is that of its last step, which is where `Episode.reward` puts it whole.
    Episodes without one are left out, and unless `failed_too` is set, so are those that failed:
    an error of the agent says nothing about the policy.

    Args:
        items: Captured items; those of an episode share an `episode_id`.
        tokenizer: The tokenizer of the model in training.
        logprobs: Whether each sampled token needs its log probability.
        failed_too: Whether to keep episodes that ended with an error.

    Raises:
        DataError: an answer lacks token ids or log probabilities, or they belong to another
            tokenizer; names items. Or no episode is left.
    """
    episodes: list[LoggedEpisode] = []
    left_out: Counter[str] = Counter()
    faults: list[str] = []
    for positions in by_episode(items):
        steps = [items[position] for position in positions]
        if not failed_too and any(FAILED in item.metadata for item in steps):
            left_out["failed"] += 1
            continue
        # Only the last step carries the reward of the outcome.
        reward = steps[-1].reward
        if reward is None:
            left_out["no reward"] += 1
            continue
        reasons = [why_unusable(tokenizer, item, logprobs=logprobs) for item in steps]
        known = zip(positions, steps, reasons, strict=True)
        faults += [_fault(position, item, why) for position, item, why in known if why]
        if not any(reasons):
            streams = turns_to_streams([as_turn(item) for item in steps])
            episodes.append(LoggedEpisode(items=steps, streams=streams, reward=reward))
    _refuse(faults, len(items))
    if not episodes:
        counted = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(f"no logged episode is left to learn from: {counted}")
    return Logged(episodes, dict(left_out))


def as_turn(item: TrajectoryItem) -> LoggedTurn:
    """Return a captured item as a turn."""
    token_ids = list(item.token_ids or ())
    logprobs = item.logprobs if item.logprobs is not None else [0.0] * len(token_ids)
    return LoggedTurn(list(item.prompt_token_ids or ()), token_ids, list(logprobs))


def _missing_words(item: TrajectoryItem, spelled: Sequence[str]) -> str:
    """Return words of an answer that its token ids do not spell; "" if they spell all.

    The text around them may differ: thoughts, special tokens, the form in which calls are written.
    """
    calls = item.tool_calls or ()
    content = content_of(item.action, calls)
    names = [name_of(call) for call in calls]
    if calls and content == item.action:
        # the call is written in a form that only the model's own text has
        content = ""
    for words in (content.strip(), *names):
        if not any(words in text for text in spelled):
            return words
    return ""


def _fault(position: int, item: TrajectoryItem, reason: str) -> str:
    where = "" if item.episode_id is None else f" (episode {item.episode_id}, step {item.step})"
    return f"item {position}{where}: {reason}"


def _refuse(faults: Sequence[str], items: int) -> None:
    if not faults:
        return
    examples = "; ".join(faults[:EXAMPLES])
    raise DataError(
        f"{len(faults)} of {items} captured answers cannot be learned from: {examples}; leave them "
        "out, or imitate them with SFTTrainer, which can render them again"
    )
