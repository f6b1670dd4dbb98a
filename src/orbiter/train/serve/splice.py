"""Build prompts that reuse the sampled tokens of earlier answers instead of rendering them again.

A client sends the whole conversation at each turn, as messages. Rendering it again would not give
the tokens that the model drew: JSON is written with other spaces, a call's form is normalised, a
word is split into other tokens. So a conversation that continues an earlier answer of the session
gets that answer's prompt and tokens unchanged, and only the new part is rendered and tokenised.

A conversation continues an answer if its messages up to there are the same, compared by role, text,
call ids and parsed arguments (clients rewrite JSON, and send "" for None). Otherwise, or if the
chat template itself rewrites earlier messages (most drop earlier thoughts), a new stream begins:
the conversation is rendered as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from orbiter.train.chat.message import Message
from orbiter.train.engine.encoding import encode, encode_after, special_ids
from orbiter.train.engine.prompt import ROLES

_PROBE = "orbiter-probe"
"""An answer that is easy to find in the output of a template."""


class Renderer(Protocol):
    """What a splice needs from `Answering`."""

    @property
    def policy(self) -> object:
        """The policy, for its tokenizer and its stop tokens."""

    def text(
        self, messages: Sequence[Message], tools: Sequence[Message], *, open_turn: bool
    ) -> str:
        """Return a conversation as the chat template writes it."""


class Prompt(NamedTuple):
    """A prompt in token ids, and where it came from."""

    token_ids: list[int]
    text: str
    """The conversation as the template writes it now."""
    continues: int | None
    """The turn whose tokens it begins with; None if a new stream begins."""
    drift: bool
    """Whether a re-rendering of the same conversation would have given other token ids."""


class _Answer(NamedTuple):
    """An answer that later conversations may continue."""

    turn: int
    prompt_text: str
    token_ids: list[int]
    """Prompt and answer."""


class Splicer:
    """The answers of one session, found by the conversations that lead to them."""

    def __init__(self, renderer: Renderer) -> None:
        """Create a splicer without answers."""
        self._renderer = renderer
        policy = renderer.policy
        self._tokenizer, self._stops = policy.tokenizer, policy.stop_token_ids  # type: ignore[attr-defined]
        self._answers: dict[bytes, _Answer] = {}
        self._usual: str | None = None

    def prompt(self, messages: Sequence[Message], tools: Sequence[Message]) -> Prompt:
        """Return the prompt of a conversation."""
        text = self._renderer.text(messages, tools, open_turn=True)
        rendered = encode(self._tokenizer, text)
        keys = _keys(messages, tools)
        # From the longest beginning to the shortest, to keep as many sampled tokens as possible.
        for index in range(len(messages) - 1, -1, -1):
            answer = self._answers.get(keys[index])
            if answer is not None:
                tail = self._tail(messages, tools, index, answer, text)
                if tail is not None:
                    spliced = answer.token_ids + tail
                    return Prompt(spliced, text, answer.turn, drift=spliced != rendered)
                # The conversation continues an answer, but its history was rewritten by the
                # template.
                return Prompt(rendered, text, None, drift=True)
        return Prompt(rendered, text, None, drift=False)

    def note(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        *,
        reply: Message,
        prompt: Prompt,
        token_ids: Sequence[int],
        turn: int,
    ) -> None:
        """Remember an answer."""
        key = _keys([*messages, reply], tools)[-1]
        self._answers[key] = _Answer(turn, prompt.text, [*prompt.token_ids, *token_ids])

    def _tail(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        position: int,
        answer: _Answer,
        text: str,
    ) -> list[int] | None:
        """Return the tokens after the answer at `position`; None if the history was rewritten."""
        rendered = self._renderer.text(messages[: position + 1], tools, open_turn=False)
        # Both must hold: the template writes the same prompt as then, and the same history now.
        if not rendered.startswith(answer.prompt_text) or not text.startswith(rendered):
            return None
        written = rendered[len(answer.prompt_text) :]
        # Templates that drop thoughts or change the text do not contain the answer as it was
        # sent.
        if _words(messages[position]) not in written:
            return None
        closing = self._closing(written)
        if closing is None:
            return None
        # Only the template's own text after the answer is encoded; the answer keeps its tokens.
        before = rendered.removesuffix(closing)
        tail = encode_after(self._tokenizer, before, closing + text[len(rendered) :])
        # The mark that ends the turn was sampled, unless the answer was cut off.
        if tail and answer.token_ids[-1] in self._stops and tail[0] in self._special:
            del tail[0]
        return tail

    @property
    def _special(self) -> set[int]:
        return {*special_ids(self._tokenizer), *self._stops}

    def _closing(self, written: str) -> str | None:
        """Return the text that the template writes after an answer."""
        # Found once per session, since the template does not change.
        if self._usual is None:
            chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
            rendered = self._renderer.text(chat, (), open_turn=False)
            self._usual = rendered.partition(_PROBE)[2]
        if self._usual and written.endswith(self._usual):
            return self._usual
        # Some templates end calls with another mark than text, so take the last mark.
        marks = [*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()]
        start = max((written.rfind(mark) for mark in marks), default=-1)
        return written[start:] if start >= 0 else None


def _keys(messages: Sequence[Message], tools: Sequence[Message]) -> list[bytes]:
    """Return a key for every beginning of a conversation."""
    key = _digest(b"", list(tools))
    keys = []
    for message in messages:
        key = _digest(key, _essence(message))
        keys.append(key)
    return keys


def _digest(before: bytes, value: object) -> bytes:
    # sort_keys, because clients change the order of fields.
    text = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(before + text, digest_size=16).digest()


def _essence(message: Message) -> list[object]:
    """Return a message's content, normalised for how senders write JSON and empty values."""
    calls = [
        [call.get("id"), call["function"]["name"], _parsed(call["function"].get("arguments"))]
        for call in message.get("tool_calls") or ()
    ]
    role = ROLES[message["role"]]
    words = _text(message.get("content"))
    return [
        role,
        # Templates and clients strip the white space around an answer.
        words.strip() if role == "assistant" else words,
        calls,
        message.get("tool_call_id"),
    ]


def _parsed(arguments: object) -> object:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return _plain(arguments)


def _plain(value: object) -> object:
    """Write whole floats as ints: languages without ints send 1 for 1.0."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else ""


def _words(message: Message) -> str:
    return _text(message.get("content")).strip()
