"""Token ids for episodes without retokenisation drift.

The ids of one conversation form one stream: the prompt, the sampled answer, the text between that
answer and the next, the next sampled answer, and so on. Ids from the server are kept as they are.
Without them only the new text of a turn is tokenised and appended to the previous turn's ids,
because tokenising the whole text again could split it differently from what the model saw. A turn
whose prompt does not continue the previous turn (a template that strips reasoning, a rewritten
history) starts a new stream and is reported. It is up to the caller which model the ids belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Break(NamedTuple):
    """A turn that does not continue the one before it."""

    episode_id: str | None
    step: int | None
    shared: int
    """Length of the common prefix, in tokens (server ids) or characters (text)."""
    of: int
    """Length of the previous turn, in the same unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    """Where the ids of items came from, and whether they form streams."""

    turns: int
    from_server: int
    """Turns whose prompt and answer ids both come from the server."""
    tokenised: int
    """Turns whose text was tokenised."""
    unknown: int
    """Turns without ids, for lack of a tokenizer."""
    breaks: tuple[Break, ...]
    """Turns that start a new stream although an earlier turn exists."""

    def __str__(self) -> str:
        text = (
            f"{self.turns} turns: {self.from_server} with the server's token ids, "
            f"{self.tokenised} tokenised, {self.unknown} without ids; "
            f"{len(self.breaks)} do not continue the turn before"
        )
        return text if not self.breaks else f"{text}, the first at {self.breaks[0]}"


class Tokenised(NamedTuple):
    """Items with their token ids, and a report."""

    items: list[TrajectoryItem]
    """In input order."""
    report: TokenReport


def add_token_ids(
    items: Iterable[TrajectoryItem], tokenizer: PreTrainedTokenizerBase | None = None
) -> Tokenised:
    """Return the items with token ids, and a report on the streams that they form.

    Args:
        items: The items, in the order of their steps within each episode, as a dataset yields them.
        tokenizer: Tokenises turns without ids from a server; None leaves those turns without ids
            and only checks the others.

    Raises:
        DataError: the tokenizer's template rejects a conversation.
    """
    given = list(items)
    done: dict[int, TrajectoryItem] = {}
    tally = _IdTally()
    for _, positions in sorted(_streams(given).items()):
        before: _Turn | None = None
        for position in positions:
            before = _turn(given[position], before, tokenizer, tally)
            done[position] = before.item
    report = TokenReport(
        turns=len(given),
        from_server=tally.from_server,
        tokenised=tally.tokenised,
        unknown=len(given) - tally.from_server - tally.tokenised,
        breaks=tuple(tally.breaks),
    )
    return Tokenised([done[position] for position in range(len(given))], report)


@dataclass(slots=True)
class _IdTally:
    from_server: int = 0
    tokenised: int = 0
    breaks: list[Break] = field(default_factory=list[Break])


class _Turn(NamedTuple):
    item: TrajectoryItem
    stream: list[int] | None
    """The token ids of its prompt and its answer."""
    text: str | None
    """The text that these ids spell, if it was tokenised here."""


def _streams(items: Sequence[TrajectoryItem]) -> dict[str, list[int]]:
    """Group the positions of items by episode and agent, in step order; other items stay alone."""
    streams: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        # By agent: a sub-agent has a separate conversation within the episode.
        name = f"{position}" if item.episode_id is None else f"{item.episode_id}/{item.agent}"
        streams.setdefault(name, []).append(position)
    for positions in streams.values():
        positions.sort(key=lambda position: items[position].step or 0)
    return streams


def _turn(
    item: TrajectoryItem,
    before: _Turn | None,
    tokenizer: PreTrainedTokenizerBase | None,
    tally: _IdTally,
) -> _Turn:
    if item.prompt_token_ids is not None and item.token_ids is not None:
        tally.from_server += 1
        return _from_server(item, before, tally)
    if tokenizer is None:
        return _Turn(item, None, None)
    tally.tokenised += 1
    return _tokenised(item, before, tokenizer, tally)


def _from_server(item: TrajectoryItem, before: _Turn | None, tally: _IdTally) -> _Turn:
    prompt, sampled = list(item.prompt_token_ids or ()), list(item.token_ids or ())
    if before is not None and before.stream is not None:
        _note(item, before.stream, prompt, tally)
    return _Turn(item, [*prompt, *sampled], None)


def _tokenised(
    item: TrajectoryItem,
    before: _Turn | None,
    tokenizer: PreTrainedTokenizerBase,
    tally: _IdTally,
) -> _Turn:
    from orbiter.train.engine.encoding import encode, encode_after
    from orbiter.train.engine.prompt import render_text
    from orbiter.train.engine.turn_end import render_action, render_action_text

    prompt_text = render_text(tokenizer, item)
    answer_text = render_action_text(tokenizer, item)
    prompt: list[int] | None = None
    if before is not None and before.text is not None and before.stream is not None:
        if prompt_text.startswith(before.text):
            new = prompt_text[len(before.text) :]
            prompt = [*before.stream, *encode_after(tokenizer, before.text, new)]
        else:
            _note(item, before.text, prompt_text, tally)
    if prompt is None:
        prompt = encode(tokenizer, prompt_text)
    answer = render_action(tokenizer, item)
    known = replace(item, prompt_token_ids=prompt, token_ids=answer, logprobs=None)
    return _Turn(known, [*prompt, *answer], prompt_text + answer_text)


def _note(
    item: TrajectoryItem,
    before: Sequence[int] | str,
    now: Sequence[int] | str,
    tally: _IdTally,
) -> None:
    """Report a turn that does not begin with all of the previous turn."""
    shared = 0
    for old, new in zip(before, now, strict=False):
        if old != new:
            break
        shared += 1
    if shared < len(before):
        tally.breaks.append(Break(item.episode_id, item.step, shared, len(before)))
