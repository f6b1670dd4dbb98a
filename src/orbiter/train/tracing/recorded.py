"""A recorded call of a model into an item: shared by the importers of traces.

The shape is that of `conversation.py`: the chat before the answer in `messages` (None where that
is one plain user message), the answer in `action` and `tool_calls`, what else it said in
`metadata`. Left out: where the call was found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any

from orbiter.train.chat.message import REASONING, Message, text_of
from orbiter.train.chat.transcript import Transcript, write_action
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.item import NAMES, from_values

CHATS = 8
"""Chats that may go on at the same time before one of them is told anew."""

Maker = Callable[..., TrajectoryItem]
"""Makes an item of its fields by their names, as `TrajectoryItem` does."""

NO_ANSWER: Message = {"role": "assistant", "content": ""}
"""Stands for the answer of a call that failed."""


class Recorder:
    """Makes the items of calls whose chats go on from one another, each message told once."""

    def __init__(self, make: Maker = TrajectoryItem) -> None:
        """Start with no chats.

        Args:
            make: `decoded_item` where all that comes was decoded from JSON by msgspec.
        """
        self._make = make
        self._chats: deque[tuple[Sequence[Message], Transcript]] = deque(maxlen=CHATS)

    def item(
        self,
        prompt: Sequence[Message],
        answer: Message,
        metadata: dict[str, Any],
        **known: Any,  # noqa: ANN401 - further fields of the item
    ) -> TrajectoryItem:
        """Return the item of a call.

        Raises:
            DataError: a field cannot hold what is there; the message names it.
        """
        calls = answer.get("tool_calls") or None
        content = answer.get("content")
        if thought := answer.get("reasoning_content"):
            metadata[REASONING] = thought
        rest = {key: answer[key] for key in answer if key not in _TOLD}
        if isinstance(content, list):
            rest["content"] = content
        if rest:
            metadata["answer"] = rest
        return self._make(
            self._state(prompt),
            write_action(content if isinstance(content, str) else text_of(content), calls),
            metadata=metadata,
            messages=None if _is_plain(prompt) else prompt,
            tool_calls=calls,
            **known,
        )

    def _state(self, prompt: Sequence[Message]) -> str:
        """Return a chat as text, going on from a chat that it begins with the messages of."""
        for chat in self._chats:
            begun, transcript = chat
            if len(begun) <= len(prompt) and all(map(is_, begun, prompt)):
                self._chats.remove(chat)
                break
        else:
            transcript = Transcript()
        self._chats.appendleft((prompt, transcript))
        return transcript.up_to(prompt, len(prompt))


def decoded_item(state: str, action: str, **known: Any) -> TrajectoryItem:  # noqa: ANN401
    """Return an item without checking what msgspec's decoding has checked."""
    known["state"], known["action"] = state, action
    return from_values(tuple(map(known.get, NAMES)))


def _is_plain(prompt: Sequence[Mapping[str, object]]) -> bool:
    """Say whether a chat says no more than its text does."""
    if len(prompt) != 1 or prompt[0].keys() != {"role", "content"}:
        return False
    return prompt[0]["role"] == "user" and isinstance(prompt[0]["content"], str)


_TOLD = frozenset({"role", "content", "tool_calls", "reasoning_content"})
"""Fields of an answer that an item holds elsewhere."""
