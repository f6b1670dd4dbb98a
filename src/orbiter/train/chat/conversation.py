"""Convert between chats and items: a conversation is an episode, and each answer is an item.

An item of a chat has everything before the answer in `messages` (None if that is one plain user
message, which is in `state`), and the answer in `action`, with its calls in `tool_calls`. These
metadata entries store what an item has no field for:

    reasoning           what the model thought before this answer
    answer              other fields of the answer's message (name, refusal, content in parts)
    messages_after      the messages after the conversation's last answer

Messages here are always in OpenAI's form; how a file stores them is up to the file formats.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from orbiter.train.chat.message import REASONING, Message, check_messages, text_of
from orbiter.train.chat.transcript import Transcript, content_of, state_of, write_action
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

CARRIED = frozenset(
    {
        "action",
        "messages",
        "tools",
        "tool_calls",
        f"metadata.{REASONING}",
        "metadata.answer",
        "metadata.messages_after",
    }
)
"""The fields of an item that a chat in OpenAI's form can carry. A `state` is carried too if it says
no more than the messages do, see `state_matches_messages`."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One chat from its first message to its last, and the items whose answers are in it."""

    messages: list[Message]
    answers: list[int]
    """Positions in `messages` of the items' answers; empty for an unanswered prompt."""
    items: list[TrajectoryItem] = field(default_factory=list)
    """In the order of `answers`."""

    @property
    def tools(self) -> Sequence[Message] | None:
        """The tools on offer, the same for all items."""
        return self.items[0].tools


def conversations(items: Iterable[TrajectoryItem]) -> Iterator[Conversation]:
    """Yield the chats that items come from, in the order of their first items.

    The steps of an episode form one conversation as long as each prompt continues the previous one
    and its answer; where an agent's history was rewritten, a new conversation starts. An item
    without an episode is a separate conversation.
    """
    for steps in _episodes(items):
        chains: list[Conversation] = []
        for item in steps:
            prompt = prompt_of(item)
            # The newest first: after a rewritten history, the older chain may still fit too.
            chain = next((c for c in reversed(chains) if _continues(c, item, prompt)), None)
            if chain is None:
                chains.append(chain := Conversation([], []))
            _extend(chain, item, prompt)
        yield from map(_finished, chains)


def items_of(
    messages: Sequence[Message],
    *,
    tools: Sequence[Message] | None = None,
    answers: Container[int] | None = None,
    episode_id: str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Iterator[TrajectoryItem]:
    """Yield an item for each answer of a chat, or one without an action if there is no answer.

    Args:
        messages: The chat; checked by `check_messages`.
        tools: The tools on offer.
        answers: Positions of the messages that are answers to learn from; None means every
            message of the assistant.
        episode_id: Set on the items if there are several.
        metadata: Set on every item.

    Raises:
        DataError: an item cannot hold a value; the message names the field.
    """
    positions = [
        position
        for position, message in enumerate(messages)
        if message["role"] == "assistant" and (answers is None or position in answers)
    ]
    several = len(positions) > 1
    transcript = Transcript()
    for step, position in enumerate(positions):
        # Earlier answers need none: what follows them is in the prompt of the next answer.
        after = messages[position + 1 :] if step == len(positions) - 1 else ()
        yield item_of(
            messages[:position],
            messages[position],
            state=transcript.up_to(messages, position),
            tools=tools,
            # One answer alone is no episode, and an id would keep a split from placing it freely.
            episode_id=episode_id if several else None,
            step=step if several else None,
            metadata={**(metadata or {}), **({"messages_after": list(after)} if after else {})},
        )
    if not positions:
        yield TrajectoryItem(
            transcript.up_to(messages, len(messages)),
            "",
            metadata=metadata or {},
            messages=_beyond_state(messages),
            tools=tools,
        )


def item_of(
    prompt: Sequence[Message],
    answer: Message,
    *,
    state: str | None = None,
    metadata: Mapping[str, object] | None = None,
    tools: Sequence[Message] | None = None,
    episode_id: str | None = None,
    step: int | None = None,
) -> TrajectoryItem:
    """Return the item for a prompt and its answer."""
    calls = cast("list[Message] | None", answer.get("tool_calls")) or None
    content = answer.get("content")
    text = content if isinstance(content, str) else text_of(content)
    entries = dict(metadata or {})
    if answer.get("reasoning_content"):
        entries[REASONING] = answer["reasoning_content"]
    # Whatever else a tool stored in the message comes back when the chat is written.
    rest = {key: value for key, value in answer.items() if key not in _STORED and value is not None}
    # `action` holds only the text of the parts, so the parts themselves are kept too.
    if isinstance(content, list):
        rest["content"] = content
    if rest:
        entries["answer"] = rest
    return TrajectoryItem(
        state_of(prompt) if state is None else state,
        write_action(text, calls),
        metadata=entries,
        messages=_beyond_state(prompt),
        tool_calls=calls,
        tools=tools,
        episode_id=episode_id,
        step=step,
    )


def prompt_of(item: TrajectoryItem) -> list[Message]:
    """Return the chat that an item answers.

    Raises:
        DataError: one of its messages has no role.
    """
    if item.messages is None:
        return [{"role": "user", "content": item.state}]
    return _checked(item, item.messages)


def answer_of(item: TrajectoryItem) -> dict[str, Any]:
    """Return an item's answer as a message."""
    content = content_of(item.action, item.tool_calls)
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    if item.tool_calls:
        answer["content"] = content or None
        answer["tool_calls"] = list(item.tool_calls)
    if thought := item.metadata.get(REASONING):
        answer["reasoning_content"] = thought
    if isinstance(rest := item.metadata.get("answer"), Mapping):
        answer.update({key: value for key, value in rest.items() if key not in _STORED})
        # The stored parts are valid only while the action still equals their text.
        if "content" in rest and text_of(rest["content"]) == content:
            answer["content"] = rest["content"]
    return answer


def note(left: Left, item: TrajectoryItem, carried: frozenset[str] = CARRIED) -> None:
    """Count the fields of an item that a chat cannot carry; see `CARRIED`."""
    stored = carried | {"state"} if state_matches_messages(item) else carried
    left.note(item, stored - _unfit(item))


def state_matches_messages(item: TrajectoryItem) -> bool:
    """Return whether an item's state equals its messages as text, in our form or capture's."""
    messages = item.messages
    if messages is None or item.state == state_of(messages):
        return True
    return item.state == Transcript().with_roles(messages, len(messages))


def _unfit(item: TrajectoryItem) -> set[str]:
    """Return the metadata entries that have our names but values of another kind."""
    answer, after = item.metadata.get("answer"), item.metadata.get("messages_after")
    unfit = set()
    if answer is not None:
        kept = answer_of(item)
        if not isinstance(answer, Mapping) or any(kept.get(key) != answer[key] for key in answer):
            unfit.add("metadata.answer")
    if after is not None and not isinstance(after, list):
        unfit.add("metadata.messages_after")
    return unfit


def _checked(item: TrajectoryItem, messages: Sequence[Message]) -> list[Message]:
    try:
        return check_messages(messages)
    except DataError as error:
        raise DataError(f"item {item.id} is not a chat: {error}") from error


def _episodes(items: Iterable[TrajectoryItem]) -> Iterator[list[TrajectoryItem]]:
    episodes: dict[object, list[TrajectoryItem]] = {}
    for position, item in enumerate(items):
        # A position is a number and an id a text, so the two never meet.
        episodes.setdefault(position if item.episode_id is None else item.episode_id, []).append(
            item
        )
    for steps in episodes.values():
        if all(item.step is not None for item in steps):
            steps.sort(key=lambda item: item.step or 0)
        yield steps


def _continues(chain: Conversation, item: TrajectoryItem, prompt: list[Message]) -> bool:
    last = chain.items[-1]
    length = len(chain.messages)
    return (
        len(prompt) >= length
        and not last.metadata.get("messages_after")
        and item.tools == last.tools
        and all(map(_same, chain.messages, prompt))
    )


def _same(one: Message, other: Message) -> bool:
    """Return whether two messages are equal, treating absent, None and empty fields alike."""
    return one == other or _filled(one) == _filled(other)


def _filled(message: Message) -> dict[str, object]:
    return {key: value for key, value in message.items() if value not in (None, "", [])}


def _extend(chain: Conversation, item: TrajectoryItem, prompt: list[Message]) -> None:
    # The prompt contains all earlier messages, and with them the tool results since the last
    # answer.
    chain.messages[:] = prompt
    chain.answers.append(len(prompt))
    chain.messages.append(answer_of(item))
    chain.items.append(item)


def _finished(chain: Conversation) -> Conversation:
    last = chain.items[-1]
    after = last.metadata.get("messages_after")
    # An item without an action is a prompt that nobody has answered yet.
    if not after and len(chain.items) == 1 and chain.messages[-1] == _NO_ANSWER:
        return Conversation(chain.messages[:-1], [], chain.items)
    if isinstance(after, list):
        chain.messages.extend(_checked(last, after))
    return chain


def _beyond_state(prompt: Sequence[Message]) -> Sequence[Message] | None:
    """Return the messages, or None if the state already says everything in them."""
    if len(prompt) == 1 and prompt[0].keys() == {"role", "content"}:
        plain = prompt[0]["role"] == "user" and isinstance(prompt[0]["content"], str)
        return None if plain else prompt
    return prompt


_NO_ANSWER: Message = {"role": "assistant", "content": ""}
_STORED = frozenset({"role", "content", "tool_calls", "reasoning_content"})
"""Fields of an answer that an item stores elsewhere."""
