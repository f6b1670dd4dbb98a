"""Store the common part of an episode's requests only once.

Each request carries the whole conversation so far. The part that repeats an earlier request byte
for byte is neither decoded nor rendered as text again: its messages are the very same objects,
which lets the dataset recognise them cheaply. `raw_request.py` compares the bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from orbiter.train.capture.raw_request import Written, written
from orbiter.train.capture.redact import Cleaned, Cleaner, without_keys
from orbiter.train.capture.wire import NO_PARAMETERS, RESPONSES, Wire
from orbiter.train.capture.wire.responses import previous
from orbiter.train.chat.message import Json, Message
from orbiter.train.chat.reply import Fields, Reply, decode, decode_fields
from orbiter.train.chat.transcript import Transcript
from orbiter.train.redact import mask_named, mask_texts, secrets_of_the_environment

Clean = Cleaner | None

REMEMBERED = 8
"""How many conversations of an episode are kept as candidates for continuation; more than one,
because its agents may take turns."""


class RequestHistory(msgspec.Struct, kw_only=True):
    """A conversation up to one model request, with the request's settings."""

    messages: list[Message] = []
    state: str = ""
    """The transcript of the messages. It begins with the previous turn's state, so even a lone
    user message keeps its role header, unlike in `transcript.state_of`."""
    names: dict[str, str] = {}
    """Tool name by call id."""
    redacted: bool = False
    missing: str | None = None
    """The server-side response or conversation that this one continues, if that was not captured;
    messages are then missing at the beginning."""
    tools: list[Message] | None = None
    params: dict[str, Json] = {}

    def with_more(self, messages: list[Message], *, redacted: bool) -> RequestHistory:
        """Return the conversation with `messages` added."""
        names = self.names.copy()
        added = "\n\n".join(Transcript(names).blocks(messages))
        state = "\n\n".join(filter(None, (self.state, added)))
        return RequestHistory(
            messages=self.messages + messages,
            state=state,
            names=names,
            redacted=self.redacted or redacted,
            missing=self.missing,
            tools=self.tools,
            params=self.params,
        )


class NotACall(Exception):  # noqa: N818 - decides which list a request is noted in
    """The address could be a model's, but the body is not a model request."""


class DecodedRequest(NamedTuple):
    """A decoded request: the conversation that it continues, and its new part."""

    written: Written
    before: RequestHistory
    new: list[Json]
    """The pieces after `before`; the wire's `chat` turns them into messages."""
    fields: Fields | None
    """The request's top level; None if only the conversation differs from `before`."""
    kept_by_server: bool
    """Whether the request refers to `before` by id instead of repeating it."""
    named: str | None = None
    """The id of the response or conversation that the request says it continues."""


class Conversations:
    """The latest conversations of one episode. Not thread-safe."""

    def __init__(self) -> None:
        self._latest: list[tuple[Written, RequestHistory]] = []
        self._last_reply = Reply()
        """The latest reply, which the next request usually repeats."""
        self._answered: dict[str, RequestHistory] = {}
        """Conversations that the server keeps, by the response or conversation id."""
        self._secrets: list[str] | None = None
        self._tools: dict[bytes, Cleaned] = {}
        self._params: dict[tuple[tuple[str, bytes], ...], dict[str, Json]] = {}

    def follow(self, wire: Wire, body: bytes, *, certain: bool = True) -> DecodedRequest:
        """Decode the part of a request that differs from earlier ones; change no state.

        Args:
            wire: The API.
            body: The request.
            certain: Whether host and path alone prove that it goes to a model.

        Raises:
            NotACall: it does not have the shape of a model request.
            Unreadable: it is not a JSON object.
        """
        longest: tuple[Written, RequestHistory] | None = None
        for known in self._latest:
            # The longest known beginning saves the most work.
            if known[0].goes_on_in(wire, body) and (
                longest is None or len(known[0].head) > len(longest[0].head)
            ):
                longest = known
        if longest is not None:
            # None means that the bytes differ after all, and everything is compared.
            new = longest[0].new_in(body)
            if new is not None:
                return DecodedRequest(
                    longest[0].grown(body), longest[1], new, None, kept_by_server=False
                )
        return self._compare(wire, body, certain=certain)

    def read(self, asked: DecodedRequest, clean: Clean) -> RequestHistory:
        """Return the conversation in a request, and remember it."""
        before, fields = asked.before, asked.fields
        messages, redacted = asked.written.wire.chat(asked.new), False
        if clean is not None:
            messages, redacted = clean(messages)
        if asked.kept_by_server:
            talk = _continued(before, messages, redacted=redacted)
        else:
            _share(messages, self._last_reply)
            talk = before.with_more(messages, redacted=redacted)
            # The beginning of this conversation was not captured, so later ones must not continue
            # it here.
            if asked.named is not None:
                talk.missing = asked.named
            else:
                self._remember(asked.written, talk, instead_of=before)
        if fields is not None:
            # Requests repeat their tools byte for byte, so they are decoded once.
            tools = self._read_tools(asked.written.wire, fields, clean)
            talk.tools, talk.redacted = tools.value or None, talk.redacted or tools.changed
            talk.params = self._read_params(fields, clean)
        return talk

    def answered(self, asked: DecodedRequest, talk: RequestHistory, reply: Reply) -> None:
        """Remember an answer, and also its conversation if the server keeps one."""
        self._last_reply = reply
        if asked.written.wire is not RESPONSES:
            return
        names = [reply.response_id]
        # The Responses API can also name a conversation, which then grows with every response.
        if asked.fields is not None and "conversation" in asked.fields:
            names.append(asked.named or previous(asked.fields))
        whole = talk.with_more([reply.as_message()], redacted=reply.redacted)
        for name in filter(None, names):
            self._answered[name] = whole

    def _compare(self, wire: Wire, body: bytes, *, certain: bool) -> DecodedRequest:
        """Decode a whole request, and find the conversation it continues piece by piece."""
        fields = decode_fields(body)
        if not wire.accepts(fields, certain=certain):
            # Only the body shows that the address is not a model's.
            raise NotACall
        named = previous(fields) if wire is RESPONSES else None
        asked = written(wire, body, fields, may_grow=named is None)
        before = self._answered.get(named or "")
        if before is not None:
            new = [decode(part) for part in asked.parts]
            return DecodedRequest(asked, before, new, fields, kept_by_server=True, named=named)
        before, shared = RequestHistory(), 0
        for known, talk in self._latest:
            count = known.shared_with(asked)
            # A conversation counts only if all of it is repeated; a shorter common part is no
            # continuation.
            if count == len(known.parts) > shared:
                before, shared = talk, count
        new = [decode(part) for part in asked.parts[shared:]]
        return DecodedRequest(asked, before, new, fields, kept_by_server=False, named=named)

    def _remember(
        self, asked: Written, talk: RequestHistory, *, instead_of: RequestHistory
    ) -> None:
        kept = [known for known in self._latest if known[1] is not instead_of]
        # The newest is last, and the oldest leaves first.
        self._latest = [*kept[1 - REMEMBERED :], (asked, talk)]

    def _read_tools(self, wire: Wire, fields: Fields, clean: Clean) -> Cleaned:
        raw = bytes(fields.get("tools") or b"null")
        if raw not in self._tools:
            # A tool of a remote server (MCP) may hold the keys for it.
            tools = self._masked(wire.tools(decode(raw)))
            self._tools[raw] = Cleaned(tools, changed=False) if clean is None else clean(tools)
        return self._tools[raw]

    def _read_params(self, fields: Fields, clean: Clean) -> dict[str, Json]:
        kept = {name: raw for name, raw in fields.items() if name not in NO_PARAMETERS}
        key = tuple((name, bytes(raw)) for name, raw in kept.items())
        if key not in self._params:
            params = self._masked({name: decode(raw) for name, raw in without_keys(kept).items()})
            self._params[key] = params if clean is None else clean(params).value
        return self._params[key]

    def _masked(self, value: Json) -> Json:
        """Return settings or tools without secrets, recognised by their names or their format."""
        if self._secrets is None:
            self._secrets = secrets_of_the_environment()
        return mask_texts(mask_named(value), self._secrets)


def _continued(before: RequestHistory, new: list[Message], *, redacted: bool) -> RequestHistory:
    """Extend a conversation that the server keeps; instructions apply to one request only."""
    # The Responses API does not keep instructions, so each request's own ones apply.
    system = [message for message in new if message["role"] == "system"]
    rest = [message for message in [*before.messages, *new] if message["role"] != "system"]
    talk = RequestHistory().with_more([*system, *rest], redacted=before.redacted or redacted)
    talk.missing = before.missing
    return talk


def _share(messages: list[Message], reply: Reply) -> None:
    """Make messages that repeat a reply share its texts and calls, to store them in memory once."""
    for message in messages:
        if message.get("role") != "assistant" or not isinstance(message, dict):
            continue
        if reply.text and message.get("content") == reply.text:
            # Equal texts become the same object, which the data set recognises by identity.
            message["content"] = reply.text
        if reply.tool_calls and message.get("tool_calls") == reply.tool_calls:
            message["tool_calls"] = reply.tool_calls
