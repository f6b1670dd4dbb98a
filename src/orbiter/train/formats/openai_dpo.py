"""OpenAI's preference files: a prompt with a preferred and a non-preferred answer.

    {"input": {"messages": [...], "tools": [...], "parallel_tool_calls": true},
     "preferred_output": [...], "non_preferred_output": [...]}

The names `preferred_completion` and `non_preferred_completion`, used by some tools, are read too.
The file says which answer is better but not by how much, so the answers get rewards 1 and 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orbiter.train.chat.conversation import CARRIED, answer_of, prompt_of
from orbiter.train.chat.normalise import normal_messages
from orbiter.train.errors import DataError
from orbiter.train.formats.chats import (
    SCALARS,
    ChatPrompt,
    answer_in,
    answered,
    openai_message,
    unset_free,
)
from orbiter.train.formats.format import Built, Row, Rows
from orbiter.train.formats.rows import row_format
from orbiter.train.formats.trl_preference import in_pairs
from orbiter.train.json_files import fields
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

_SIDES = {
    "preferred_output": 1.0,
    "preferred_completion": 1.0,
    "non_preferred_output": 0.0,
    "non_preferred_completion": 0.0,
}
"""Columns that hold an answer, with the reward of that answer."""
_CARRIED = (CARRIED - {"metadata.messages_after"}) | {"metadata.parallel_tool_calls"}


def _claims(row: Row) -> float:
    # Both sides, since Alpaca's rows have an `input` too.
    return 1.0 if "input" in row and len(_SIDES.keys() & row.keys()) == 2 else 0.0


def _parse(row: Row, where: str) -> Iterable[TrajectoryItem]:
    given = row.get("input")
    if not isinstance(given, Mapping):
        raise DataError(f"input must be an object with messages, got {fields.shown(given)}")
    messages = normal_messages(given.get("messages"), "input.messages")
    chat = [openai_message(message) for message in messages]
    prompt = ChatPrompt(chat, frozenset())
    sides = [name for name in _SIDES if name in row]
    if [_SIDES[name] for name in sides] != [1.0, 0.0]:
        raise DataError("expected one preferred_output and one non_preferred_output")
    # The row's own scalars are about the pair, not about either answer.
    beside = unset_free(row, {"input", *_SIDES, *SCALARS}) | unset_free(given, {"messages"})
    for name in sides:
        answer = answer_in(row[name], name, is_good=_SIDES[name] == 1.0)
        yield from answered(prompt, answer, {**beside, "reward": _SIDES[name]}, f"{where}:{name}")


def _build(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Built]:
    for pair in in_pairs(items, left, _CARRIED):
        given: dict[str, Any] = {"messages": prompt_of(pair.chosen)}
        if pair.chosen.tools:
            given["tools"] = list(pair.chosen.tools)
        parallel = pair.chosen.metadata.get("parallel_tool_calls")
        if parallel is not None:
            given["parallel_tool_calls"] = parallel
        row = {
            "input": given,
            "preferred_output": [answer_of(pair.chosen)],
            "non_preferred_output": [answer_of(pair.rejected)],
        }
        yield Built(row, 2)


FORMAT = row_format(
    "openai-dpo",
    about="OpenAI preference fine-tuning, 2026",
    survives=_CARRIED,
    rows=Rows(
        claims=_claims,
        parse=_parse,
        build=_build,
        columns={
            "input": "object",
            "preferred_output": "objects",
            "non_preferred_output": "objects",
        },
    ),
)
