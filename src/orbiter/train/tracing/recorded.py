"""Converts a recorded model call to an item; shared by all importers of traces.

The layout is that of `chat/conversation.py`: the chat before the answer is in `messages` (None if
it is one plain user message), the answer in `action` and `tool_calls`, and the rest of the answer
in `metadata`. Not here: finding the calls.
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
"""The number of chats that are remembered, so that their text is not rendered again."""

Maker = Callable[..., TrajectoryItem]
"""Makes an item from its fields, with the signature of `TrajectoryItem`."""

NO_ANSWER: Message = {"role": "assistant", "content": ""}
"""The answer of a call that failed."""


class Recorder:
    """Makes the items of calls whose chats extend one another, rendering each message once."""

    def __init__(self, make: Maker = TrajectoryItem) -> None:
        """Create a recorder that has seen no chat yet.

        Args:
            make: `decoded_item` if all values were decoded from JSON by msgspec.
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
            DataError: the value of a field is invalid; the message names the field.
        """
        calls = answer.get("tool_calls") or None
        content = answer.get("content")
        if thought := answer.get("reasoning_content"):
            # Not part of the action: it is what the model thought, not what it did.
            metadata[REASONING] = thought
        rest = {key: answer[key] for key in answer if key not in _IN_FIELDS}
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
        """Render a chat as text, continuing from an earlier chat that it starts with."""
        for chat in self._chats:
            begun, transcript = chat
            # By identity, which is cheap; readers give repeated messages as one object.
            if len(begun) <= len(prompt) and all(map(is_, begun, prompt)):
                self._chats.remove(chat)
                break
        else:
            transcript = Transcript()
        self._chats.appendleft((prompt, transcript))
        return transcript.up_to(prompt, len(prompt))


def decoded_item(state: str, action: str, **known: Any) -> TrajectoryItem:  # noqa: ANN401
    """Make an item without validation, for values that msgspec has decoded."""
    known["state"], known["action"] = state, action
    # The order of NAMES is that of the item's fields.
    return from_values(tuple(map(known.get, NAMES)))


def _is_plain(prompt: Sequence[Mapping[str, object]]) -> bool:
    """Return whether a chat is one plain user message, which its text represents completely."""
    if len(prompt) != 1 or prompt[0].keys() != {"role", "content"}:
        return False
    return prompt[0]["role"] == "user" and isinstance(prompt[0]["content"], str)


_IN_FIELDS = frozenset({"role", "content", "tool_calls", "reasoning_content"})
"""Fields of an answer that an item stores in other fields."""
