"""What the requests of an episode have in common, kept once.

A request carries the whole conversation so far. The part that an earlier request of the episode
carried too, byte for byte, is neither decoded nor rendered again: its messages are the very same
objects, and the data set under the episode sees that at a glance. Left out: the bytes themselves,
and how they are compared (`written.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from orbiter.train.capture.raw_request import Written, written
from orbiter.train.capture.redact import Cleaned, Cleaner, without_keys
from orbiter.train.capture.wire import NO_PARAMETERS, RESPONSES, Wire
from orbiter.train.capture.wire.responses import previous
from orbiter.train.chat.reply import Fields, Json, Message, Reply, decode, decode_fields
from orbiter.train.chat.transcript import render_state

Clean = Cleaner | None

REMEMBERED = 8
"""Lines of talk of one episode that a request may go on from: its agents may take turns."""


class Conversation(msgspec.Struct, kw_only=True):
    """A conversation up to where the model is asked, and what is asked of it there."""

    messages: list[Message] = []
    state: str = ""
    names: dict[str, str] = {}
    """The tool behind each call's id."""
    redacted: bool = False
    tools: list[Message] | None = None
    params: dict[str, Json] = {}

    def with_more(self, messages: list[Message], *, redacted: bool) -> Conversation:
        """Return the conversation gone on with `messages`."""
        names = self.names.copy()
        added = render_state(messages, names)
        state = f"{self.state}\n\n{added}" if self.state and added else self.state or added
        return Conversation(
            messages=self.messages + messages,
            state=state,
            names=names,
            redacted=self.redacted or redacted,
            tools=self.tools,
            params=self.params,
        )


class Asked(NamedTuple):
    """A request: the conversation that it goes on from, and what of it is new."""

    written: Written
    before: Conversation
    new: list[Json]
    """The pieces behind `before`, which the wire's `chat` makes messages of."""
    fields: Fields | None
    """The request's top level; None where all beside the conversation is as in `before`."""
    kept_by_server: bool
    """Whether the request names `before` instead of repeating it."""


class Conversations:
    """The latest conversations of one episode. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._latest: list[tuple[Written, Conversation]] = []
        self._said = Reply()
        """The latest reply, which the next request mostly repeats."""
        self._answered: dict[str, Conversation] = {}
        """By the id of a response that the server keeps, and that a request may go on from."""
        self._tools: dict[bytes, Cleaned] = {}
        self._params: dict[tuple[tuple[str, bytes], ...], dict[str, Json]] = {}

    def follow(self, wire: Wire, body: bytes) -> Asked:
        """Return a request, read as far as no earlier one was; remembers nothing of it.

        Raises:
            Unreadable: it is no JSON object, or its conversation is none.
        """
        longest: tuple[Written, Conversation] | None = None
        for known in self._latest:
            if known[0].goes_on_in(wire, body) and (
                longest is None or len(known[0].head) > len(longest[0].head)
            ):
                longest = known
        if longest is not None:
            new = longest[0].new_in(body)
            if new is not None:
                return Asked(longest[0].grown(body), longest[1], new, None, kept_by_server=False)
        return self._compare(wire, body)

    def read(self, asked: Asked, clean: Clean) -> Conversation:
        """Return what a request asks, and remember it."""
        before, fields = asked.before, asked.fields
        messages, redacted = asked.written.wire.chat(asked.new), False
        if clean is not None:
            messages, redacted = clean(messages)
        if asked.kept_by_server:
            talk = _gone_on(before, messages, redacted=redacted)
        else:
            _share(messages, self._said)
            talk = before.with_more(messages, redacted=redacted)
            self._remember(asked.written, talk, instead_of=before)
        if fields is not None:
            tools = self._read_tools(asked.written.wire, fields, clean)
            talk.tools, talk.redacted = tools.value or None, talk.redacted or tools.changed
            talk.params = self._read_params(fields, clean)
        return talk

    def answered(self, wire: Wire, talk: Conversation, reply: Reply) -> None:
        """Remember what was answered; as a conversation, where the server does so too."""
        self._said = reply
        if wire is RESPONSES and reply.response_id is not None:
            said = talk.with_more([reply.as_message()], redacted=reply.redacted)
            self._answered[reply.response_id] = said

    def _compare(self, wire: Wire, body: bytes) -> Asked:
        """Read a request as a whole, and look which conversation it goes on from piece by piece."""
        fields = decode_fields(body)
        named = previous(fields) if wire is RESPONSES else None
        asked = written(wire, body, fields, may_grow=named is None)
        before = self._answered.get(named or "")
        if before is not None:
            new = [decode(part) for part in asked.parts]
            return Asked(asked, before, new, fields, kept_by_server=True)
        before, shared = Conversation(), 0
        for known, talk in self._latest:
            count = known.shared_with(asked)
            if count == len(known.parts) > shared:
                before, shared = talk, count
        new = [decode(part) for part in asked.parts[shared:]]
        return Asked(asked, before, new, fields, kept_by_server=False)

    def _remember(self, asked: Written, talk: Conversation, *, instead_of: Conversation) -> None:
        kept = [known for known in self._latest if known[1] is not instead_of]
        self._latest = [*kept[1 - REMEMBERED :], (asked, talk)]

    def _read_tools(self, wire: Wire, fields: Fields, clean: Clean) -> Cleaned:
        raw = bytes(fields.get("tools") or b"null")
        if raw not in self._tools:
            tools = wire.tools(decode(raw))
            self._tools[raw] = Cleaned(tools, changed=False) if clean is None else clean(tools)
        return self._tools[raw]

    def _read_params(self, fields: Fields, clean: Clean) -> dict[str, Json]:
        kept = {name: raw for name, raw in fields.items() if name not in NO_PARAMETERS}
        key = tuple((name, bytes(raw)) for name, raw in kept.items())
        if key not in self._params:
            params = {name: decode(raw) for name, raw in without_keys(kept).items()}
            self._params[key] = params if clean is None else clean(params).value
        return self._params[key]


def _gone_on(before: Conversation, new: list[Message], *, redacted: bool) -> Conversation:
    """Return a conversation that the server keeps, gone on; instructions hold for one request."""
    system = [message for message in new if message["role"] == "system"]
    said = [message for message in [*before.messages, *new] if message["role"] != "system"]
    return Conversation().with_more([*system, *said], redacted=before.redacted or redacted)


def _share(messages: list[Message], said: Reply) -> None:
    """Let messages that repeat a reply hold its very texts and calls: memory has them once."""
    for message in messages:
        if message.get("role") != "assistant":
            continue
        if said.text and message.get("content") == said.text:
            message["content"] = said.text
        if said.tool_calls and message.get("tool_calls") == said.tool_calls:
            message["tool_calls"] = said.tool_calls
