"""TRL's preference data: a better and a worse answer, or one answer with a good/bad label.

    {"prompt": [...], "chosen": [...], "rejected": [...], "tools": [...]}
    {"prompt": [...], "completion": [...], "label": true, "tools": [...]}

Both accept texts instead of messages, and the prompt may be in any column that `chats.py` knows. In
the first, it may also be part of `chosen` and `rejected`, as messages or as the text of hh-rlhf.
The rewards are in the columns `score_chosen` and `score_rejected`, or
`reward`; if a file has none, the better answer gets reward 1 and the worse one 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from orbiter.train.chat.conversation import answer_of, note, prompt_of
from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.formats.chats import (
    SCALARS,
    ChatPrompt,
    answer_in,
    answered,
    dialogue_in,
    prompt_in,
    says_nothing,
    tag_in,
)
from orbiter.train.formats.format import Built, Row, Rows
from orbiter.train.formats.preference import Pair, stated_or_widest_pairs
from orbiter.train.formats.rows import row_format
from orbiter.train.formats.trl import (
    BESIDE,
    ONE_ANSWER,
    PROMPTLESS,
    ROW_COLUMNS,
    completion_row,
    frame,
    trl_message,
)
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

GOOD = 0.5
"""The smallest reward of an answer that is labelled good."""
UNPAIRED_NAME = "items in no pair"
UNJUDGED_NAME = "items without a reward"
EMPTY_NAME = "items whose good answer is empty"
SIDES = ("chosen", "rejected")
_PAIRED = ONE_ANSWER | {"reward"}
_LABELLED = ONE_ANSWER | set(SCALARS)
_SCORES = ("score_chosen", "score_rejected")


def pair_row(pair: Pair) -> dict[str, Any]:
    """Return a pair as a TRL row."""
    return {
        "prompt": [trl_message(message) for message in prompt_of(pair.chosen)],
        "chosen": [trl_message(answer_of(pair.chosen))],
        "rejected": [trl_message(answer_of(pair.rejected))],
        "score_chosen": pair.chosen.reward,
        "score_rejected": pair.rejected.reward,
        **frame(pair.chosen),
    }


def in_pairs(
    items: Iterable[TrajectoryItem], left: Left, carried: frozenset[str]
) -> Iterator[Pair]:
    """Yield the pairs that were read from a preference file, and one pair of each other state.

    Counts the items in no pair and the fields that a pair cannot store.
    """
    given = list(items)
    paired = 0
    for pair in stated_or_widest_pairs(given):
        # Such a pair would train the model to prefer silence.
        if says_nothing(answer_of(pair.chosen)) or not prompt_of(pair.chosen):
            continue
        for item in pair:
            note(left, item, carried)
        paired += 2
        yield pair
    if paired < len(given):
        left[UNPAIRED_NAME] += len(given) - paired


def _claims_pair(row: Row) -> float:
    return 0.95 if {"chosen", "rejected"} <= row.keys() else 0.0


def parse_pair(row: Row, where: str) -> Iterable[TrajectoryItem]:
    """Yield the items of a prompt's two answers, the better first.

    Raises:
        DataError: there is no prompt, or an answer is missing, empty or not a chat.
    """
    prompt, chosen, rejected = _sides(row)
    scores = [row.get(name) for name in _SCORES]
    if any(score is None for score in scores):
        # Both or none: one score alone says nothing about the other.
        scores = [1.0, 0.0]
    for name, answer, score in zip(SIDES, (chosen, rejected), scores, strict=True):
        beside = {**row, "reward": score}
        yield from answered(prompt, answer, beside, f"{where}:{name}", known=(*SIDES, *_SCORES))


def _sides(row: Row) -> tuple[ChatPrompt, list[Message], list[Message]]:
    """Return the prompt and the two answers; if there is no prompt, it is their common start."""
    prompt = prompt_in(row)
    given = [row.get(name) for name in SIDES]
    if isinstance(row.get("prompt"), str) and dialogue_in(row["prompt"]):
        # The answers of such a prompt begin with a blank, as its last turn is "Assistant:".
        given = [side.strip() if isinstance(side, str) else side for side in given]
    if prompt is None and all(isinstance(side, str) for side in given):
        turns = [dialogue_in(str(side)) for side in given]
        if not all(turns):
            raise DataError(
                "chosen and rejected are texts, so a column with the prompt is needed, or the form "
                "of hh-rlhf: \\n\\nHuman: ...\\n\\nAssistant: ..."
            )
        given = list(turns)
    chosen = answer_in(given[0], SIDES[0], is_good=True)
    rejected = answer_in(given[1], SIDES[1])
    start = 0 if prompt is None else len(prompt.messages)
    # Some files repeat the prompt inside both sides.
    if prompt is not None and chosen[:start] == rejected[:start] == list(prompt.messages):
        return prompt, _rest(chosen, start, 0), _rest(rejected, start, 1)
    if prompt is not None and not prompt.is_text:
        return prompt, chosen, rejected
    shared = 0
    # At least one message of each side is its answer, also if all are equal.
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared:
        columns = frozenset() if prompt is None else prompt.columns
        return ChatPrompt(chosen[:shared], columns), chosen[shared:], rejected[shared:]
    if prompt is None:
        raise DataError("chosen and rejected have no common start, and there is no prompt")
    return prompt, chosen, rejected


def _rest(side: list[Message], start: int, which: int) -> list[Message]:
    if len(side) == start:
        raise DataError(f"{SIDES[which]} holds the prompt alone, without an answer")
    return side[start:]


def _build_pair(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for pair in in_pairs(items, left, _PAIRED):
        yield Built(pair_row(pair), 2)


def _claims_label(row: Row) -> float:
    return 0.95 if {"prompt", "completion", "label"} <= row.keys() else 0.0


def _parse_label(row: Row, where: str) -> Iterable[TrajectoryItem]:
    reward = tag_in(row, "label")
    if reward is None:
        raise DataError("label must be true or false, got None")
    prompt = prompt_in(row)
    if prompt is None:
        raise DataError("prompt must be a text or a list of messages, got None")
    answer = answer_in(row.get("completion"), "completion", is_good=reward == 1.0)
    for item in answered(prompt, answer, row, where, known={"completion", "label"}):
        # A reward column is more exact than the label.
        yield item if item.reward is not None else replace(item, reward=reward)


def _build_label(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for item in items:
        if item.reward is None:
            left[UNJUDGED_NAME] += 1
            continue
        if item.reward >= GOOD and says_nothing(answer_of(item)):
            left[EMPTY_NAME] += 1
            continue
        if not prompt_of(item):
            left[PROMPTLESS] += 1
            continue
        note(left, item, _LABELLED)
        yield Built({**completion_row(item), "label": item.reward >= GOOD}, 1)


PREFERENCE = row_format(
    "trl-preference",
    about="TRL 1.16, a prompt with a chosen and a rejected answer",
    survives=_PAIRED,
    rows=Rows(
        claims=_claims_pair,
        parse=parse_pair,
        build=_build_pair,
        columns={
            "prompt": "objects",
            "chosen": "objects",
            "rejected": "objects",
            "score_chosen": "number",
            "score_rejected": "number",
            **BESIDE,
        },
    ),
)
UNPAIRED = row_format(
    "trl-unpaired",
    about="TRL 1.16, a prompt, a completion, and whether it is good",
    survives=_LABELLED,
    rows=Rows(
        claims=_claims_label,
        parse=_parse_label,
        build=_build_label,
        columns={**ROW_COLUMNS, "label": "flag"},
    ),
)
