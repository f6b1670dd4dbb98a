"""Chat completions: reads requests, and writes answers in one piece or as a stream.

Token ids come on request under vLLM's names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orbiter.train.chat.message import Message
from orbiter.train.serve.asked import (
    ChatRequest,
    ParsedRequest,
    Refusal,
    SharedFields,
    Tokenizer,
    as_message,
    check_request,
    convert,
    count_drawn,
    decode,
    drop_unsupported,
    finished,
    token_ids_of,
)
from orbiter.train.serve.reply import DrawnToken, GrowingAnswer, GrowingReply
from orbiter.train.serve.stream import News, event

DONE = b"data: [DONE]\n\n"

ALLOWED: Mapping[str, Sequence[object] | None] = {
    # Supported settings.
    **dict.fromkeys(ChatRequest.__struct_fields__),
    # Settings that do not change the answer.
    **dict.fromkeys(
        (
            "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "prompt_cache_options", "prompt_cache_retention", "request_id", "priority",
        )
    ),
    # Unsupported settings, with the values that have no effect.
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "repetition_penalty": [1],
    "length_penalty": [1],
    "logit_bias": [{}],
    "top_k": [-1, 0],
    "min_p": [0],
    "min_tokens": [0],
    "best_of": [1],
    "use_beam_search": [False],
    "ignore_eos": [False],
    "echo": [False],
    "stop_token_ids": [[]],
    "bad_words": [[]],
    "skip_special_tokens": [True],
    "spaces_between_special_tokens": [True],
    "include_stop_str_in_output": [False],
    "add_generation_prompt": [True],
    "continue_final_message": [False],
    "add_special_tokens": [False],
    "chat_template_kwargs": [{}],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "verbosity": ["medium"],
    "reasoning_effort": ["none"],
}  # fmt: skip
"""The known settings, see `drop_unsupported`; any other is refused."""


def parse(body: bytes, *, lenient: bool = False) -> ParsedRequest:
    """Read a request.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    fields = decode(body)
    dropped = drop_unsupported(fields, ALLOWED, lenient=lenient)
    request = convert(fields, ChatRequest)
    check_request(request)
    return ParsedRequest(request, dropped)


class ChatWriter:
    """Writes one reply as a chat completion, with the tokenizer's own pieces of text."""

    def __init__(
        self, reply: GrowingReply, request: ChatRequest, shared: SharedFields, tokenizer: Tokenizer
    ) -> None:
        """Create a writer that has sent nothing."""
        self._reply, self._request = reply, request
        self._shared, self._tokenizer = shared, tokenizer
        self._usage_wanted = bool(request.stream_options and request.stream_options.include_usage)

    def whole(self) -> dict[str, object]:
        """Return the whole answer."""
        body = self._head("chat.completion")
        body["choices"] = [self._choice(choice) for choice in self._reply.choices]
        body["usage"] = self._usage()
        if self._request.return_token_ids:
            body["prompt_token_ids"] = self._reply.prompt_ids
        return body

    def opening(self) -> list[bytes]:
        """Write the pieces that begin every answer."""
        return [
            self._piece(choice, {"role": "assistant", "content": ""}, [], opening=True)
            for choice in self._reply.choices
        ]

    def news(self, news: News) -> list[bytes]:
        """Write the new part of one answer; its tokens are in the first piece."""
        choice, deltas = news.choice, list[Message]()
        if news.text:
            deltas.append({"content": news.text})
        if news.done is not None:
            message = as_message(news.done, self._shared, choice.index)
            for index, call in enumerate(message.get("tool_calls", ())):
                deltas.append({"tool_calls": [{"index": index, **call}]})
        tokens = news.tokens
        pieces = []
        for delta in deltas:
            pieces.append(self._piece(choice, delta, tokens))
            tokens = []
        if news.done is not None:
            reason = news.done.finish_reason
            pieces.append(self._piece(choice, {}, tokens, finish_reason=reason))
        return pieces

    def closing(self) -> list[bytes]:
        """End the stream, with the token counts if the request asks for them."""
        count = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}
        return [event(count), DONE] if self._usage_wanted else [DONE]

    def failed(self, refusal: Refusal) -> list[bytes]:
        """End the stream with an error."""
        return [event(refusal.body())]

    def _head(self, kind: str) -> dict[str, Any]:
        shared = self._shared
        return {
            "id": f"chatcmpl-{shared.key}",
            "object": kind,
            "created": shared.created,
            "model": shared.model,
        }

    def _usage(self) -> dict[str, int]:
        prompt, drawn = len(self._reply.prompt_ids), count_drawn(self._reply.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
        }

    def _choice(self, choice: GrowingAnswer) -> dict[str, object]:
        done = finished(choice, self._request)
        return {
            "index": choice.index,
            "message": {**as_message(done, self._shared, choice.index), "refusal": None},
            "finish_reason": done.finish_reason,
            **self._tokens(choice.tokens),
        }

    def _tokens(self, drawn: Sequence[DrawnToken]) -> dict[str, object]:
        """Return the log probabilities and ids of these tokens, if the request asks for them."""
        wanted: dict[str, object] = {"logprobs": None}
        if self._request.logprobs:
            content = [
                self._logprob(token.token_id, token.logprob)
                | {"top_logprobs": [self._logprob(*likely) for likely in token.top]}
                for token in drawn
            ]
            wanted["logprobs"] = {"content": content, "refusal": None}
        if self._request.return_token_ids:
            wanted["token_ids"] = token_ids_of(drawn)
        return wanted

    def _logprob(self, token_id: int, logprob: float) -> dict[str, object]:
        text = self._tokenizer.decode([token_id])
        # A token that is only part of a character has bytes but no text to derive them from.
        as_bytes = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": as_bytes}

    def _piece(
        self,
        choice: GrowingAnswer,
        delta: Message,
        tokens: Sequence[DrawnToken],
        *,
        finish_reason: str | None = None,
        opening: bool = False,
    ) -> bytes:
        """Write one piece of the stream, with the tokens drawn since the previous piece."""
        part = {"index": choice.index, "delta": delta, "finish_reason": finish_reason}
        part |= self._tokens(tokens)
        body = self._head("chat.completion.chunk") | {"choices": [part]}
        if self._usage_wanted:
            body["usage"] = None
        if opening and self._request.return_token_ids:
            body["prompt_token_ids"] = self._reply.prompt_ids
        return event(body)
