"""TRL's preference data: a better and a worse answer, or one answer with a good/bad label.

    {"prompt": [...], "chosen": [...], "rejected": [...], "tools": [...]}
    {"prompt": [...], "completion": [...], "label": true, "tools": [...]}

Both accept texts instead of messages. In the first, the prompt may be part of `chosen` and
`rejected` instead. The rewards are in the columns `score_chosen` and `score_rejected`, or
`reward`; if a file has none, the better answer gets reward 1 and the worse one 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from orbiter.train.chat.conversation import answer_of, note, prompt_of
from orbiter.train.chat.message import Message
from orbiter.train.errors import DataError
from orbiter.train.formats.format import Built, Row, Rows
from orbiter.train.formats.preference import Pair, preference_pairs
from orbiter.train.formats.rows import row_format
from orbiter.train.formats.trl import (
    BESIDE,
    ONE_ANSWER,
    ROW_COLUMNS,
    SCALARS,
    answered,
    chat_in,
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
    """Yield a pair per state; count the items in no pair and the fields that it cannot store."""
    given = list(items)
    paired = 0
    for pair in preference_pairs(given):
        for item in pair:
            note(left, item, carried)
        paired += 2
        yield pair
    if paired < len(given):
        left[UNPAIRED_NAME] += len(given) - paired


def _claims_pair(row: Row) -> float:
    return 0.95 if {"chosen", "rejected"} <= row.keys() else 0.0


def _parse_pair(row: Row, where: str) -> Iterable[TrajectoryItem]:
    prompt, chosen, rejected = _sides(row)
    scores = [row.get(name) for name in _SCORES]
    if any(score is None for score in scores):
        scores = [1.0, 0.0]
    rest = {key: value for key, value in row.items() if key not in _SCORES}
    for name, side, score in zip(("chosen", "rejected"), (chosen, rejected), scores, strict=True):
        yield from answered(prompt, side, name, {**rest, "reward": score}, f"{where}:{name}")


def _sides(row: Row) -> tuple[list[Message], object, object]:
    """Return the prompt and the two answers; if there is no prompt, it is their common start."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return chat_in(row.get("prompt", ""), "prompt"), chosen, rejected
    one, other = chat_in(chosen, "chosen"), chat_in(rejected, "rejected")
    prompt, shared = row.get("prompt"), 0
    if isinstance(prompt, list):
        return chat_in(prompt, "prompt"), one, other
    while shared < min(len(one), len(other)) - 1 and one[shared] == other[shared]:
        shared += 1
    if shared == 0 and prompt is None:
        raise DataError("chosen and rejected have no common start, and there is no prompt")
    common = one[:shared] if shared else chat_in(prompt, "prompt")
    return common, one[shared:], other[shared:]


def _build_pair(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for pair in in_pairs(items, left, _PAIRED):
        yield Built(pair_row(pair), 2)


def _claims_label(row: Row) -> float:
    return 0.95 if {"prompt", "completion", "label"} <= row.keys() else 0.0


def _parse_label(row: Row, where: str) -> Iterable[TrajectoryItem]:
    label = row.get("label")
    if not isinstance(label, bool):
        raise DataError(f"label must be true or false, got {label!r}")
    prompt = chat_in(row.get("prompt"), "prompt")
    for item in answered(prompt, row.get("completion"), "completion", row, where):
        yield item if item.reward is not None else replace(item, reward=float(label))


def _build_label(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for item in items:
        if item.reward is None:
            left[UNJUDGED_NAME] += 1
            continue
        note(left, item, _LABELLED)
        yield Built({**completion_row(item), "label": item.reward >= GOOD}, 1)


PREFERENCE = row_format(
    "trl-preference",
    about="TRL 1.16, a prompt with a chosen and a rejected answer",
    survives=_PAIRED,
    rows=Rows(
        claims=_claims_pair,
        parse=_parse_pair,
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
