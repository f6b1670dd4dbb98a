"""Reads Alpaca's rows, and LLaMA-Factory's variants of them for preferences; writes none.

    {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [[q, a]]}
    {"instruction": "...", "input": "...", "chosen": "...", "rejected": "..."}
    {"instruction": "...", "input": "...", "output": "...", "kto_tag": true}

The instruction and the input are one message of the user; the answers in the history are not to be
learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from orbiter.train.errors import DataError
from orbiter.train.formats.chats import (
    ALPACA,
    TAG,
    ChatPrompt,
    alpaca_in,
    answer_in,
    answered,
    tag_in,
)
from orbiter.train.formats.format import Built, Row, Rows
from orbiter.train.formats.rows import row_format
from orbiter.train.formats.trl_preference import SIDES, parse_pair
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left


def _claims(row: Row) -> float:
    # A chat column wins: some files carry an instruction beside it, as a note.
    if "instruction" not in row or not row.keys().isdisjoint({"messages", "conversations"}):
        return 0.0
    # Just below openai-dpo (1.0), whose rows may have an "input" too, and above the preference
    # files (0.95), since LLaMA-Factory's pairs keep their prompt in "instruction".
    return 0.96 if "output" in row or set(SIDES) <= row.keys() else 0.0


def _parse(row: Row, where: str) -> Iterable[TrajectoryItem]:
    if any(row.get(side) is not None for side in SIDES):
        return parse_pair(row, where)
    reward = tag_in(row)
    output = row.get("output")
    if not isinstance(output, str) or not output:
        raise DataError(f"output must be a text that is not empty, got {output!r:.60}")
    prompt = ChatPrompt(alpaca_in(row), ALPACA)
    # A tag is a verdict on the one answer, so it takes the place of the item's reward.
    beside = dict(row) if reward is None else {**row, "reward": reward}
    return answered(prompt, answer_in(output, "output"), beside, where, known=("output", TAG))


def _build(_items: Iterable[TrajectoryItem], _left: Left) -> Iterator[Built]:
    raise DataError("format 'alpaca' is only read; write sharegpt or openai-chat")


FORMAT = replace(
    row_format(
        "alpaca",
        about="Alpaca's instruction, input and output, as LLaMA-Factory 0.9 reads them",
        survives=frozenset({"state", "action", "messages", "tools", "reward", "metadata"}),
        rows=Rows(
            claims=_claims,
            parse=_parse,
            build=_build,
            columns={
                "instruction": "text",
                "input": "text",
                "output": "text",
                "system": "text",
                "history": "objects",
                TAG: "flag",
            },
        ),
    ),
    write=None,
)
