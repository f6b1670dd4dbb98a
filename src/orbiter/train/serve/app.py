"""The routes: what a request goes through from its bytes to the answer's.

Left out: sockets and the life of the server (`server.py`).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orbiter.train.engine.prompt import render
from orbiter.train.errors import DataError
from orbiter.train.net import bearer_token, refuse_web_pages, same_secret
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.batching import Batcher
from orbiter.train.serve.protocol import (
    ROLES,
    ChatRequest,
    Refusal,
    Sheet,
    Wording,
    parse_request,
)
from orbiter.train.serve.reply import Reply, Sampling
from orbiter.train.serve.stream import events
from orbiter.train.serve.terms import Terms
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy

LARGEST_BODY = 16 << 20
"""Bytes of a request at most."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Endpoint:
    """What answers requests: one model, under one name."""

    def __init__(self, policy: Policy, batcher: Batcher, terms: Terms) -> None:
        """Take the model, what runs it, and what is offered."""
        self._policy, self._batcher, self._terms = policy, batcher, terms
        self._asked = 0
        self._since = int(time.time())

    def app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return the ASGI application."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _no_route}
        app = Starlette(routes=routes, exception_handlers=handlers)

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            refusal = self._refusal(scope) if scope["type"] == "http" else None
            answer = app if refusal is None else _json(refusal.body(), refusal.status)
            await answer(scope, receive, send)

        return guarded

    async def health(self, _: Request) -> Response:
        """Say that it answers, how often it was asked, and how busy it is; needs no token."""
        busy = {"running": self._batcher.running, "waiting": self._batcher.waiting}
        return _json({"status": "ok", "model": self._terms.name, "asked": self._asked, **busy})

    async def models(self, _: Request) -> Response:
        """List the one model."""
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        self._check_name(request.path_params["model"])
        return _json(self._card())

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, whole or in pieces."""
        asked = parse_request(await _body(request))
        self._check_name(asked.model)
        if self._terms.return_token_ids:
            asked = msgspec.structs.replace(asked, return_token_ids=True, logprobs=True)
        prompt_ids = self._prompt(asked)
        sampling = self._sampling(asked, len(prompt_ids))
        if self._batcher.full:
            raise Refusal(429, "too many requests are waiting; try again in a second")
        reply = self._batcher.submit(prompt_ids, sampling)
        self._asked += 1
        sheet = Sheet(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._terms.name)
        wording = Wording(sheet, asked, self._policy.tokenizer)
        if asked.stream:
            return StreamingResponse(events(reply, wording), media_type="text/event-stream")
        await _or_leave(reply, request)
        return _json(wording.completion(reply))

    def _prompt(self, asked: ChatRequest) -> list[int]:
        """Write the conversation as the model reads it: exactly as in training."""
        messages = [{**message, "role": ROLES[message["role"]]} for message in asked.messages]
        try:
            item = TrajectoryItem("", "", messages=messages, tools=asked.offered or None)
            return render(self._policy.tokenizer, item)
        except DataError as error:
            raise Refusal(400, str(error), param="messages") from error

    def _sampling(self, asked: ChatRequest, prompt_tokens: int) -> Sampling:
        """Check that the answer fits, and fill in what the request leaves open."""
        n, most = asked.n or 1, self._terms.max_rows
        if n > most:
            raise Refusal(400, f"n={n} is more than this server's {most}", param="n")
        own = sub_seed(self._terms.seed, "request", self._asked)
        return Sampling(
            n=n,
            max_new_tokens=self._longest(asked, prompt_tokens),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=own if asked.seed is None else asked.seed,
            top_logprobs=asked.top_logprobs or 0,
            stops=asked.stops,
            live=bool(asked.stream),
        )

    def _longest(self, asked: ChatRequest, prompt_tokens: int) -> int:
        """Say how long the answer may be: as asked, or as long as is usual here and fits."""
        context = self._policy.context_length
        room = context - prompt_tokens
        longest = asked.longest or max(1, min(self._terms.max_tokens, room))
        if longest > room:
            raise Refusal(
                400,
                f"the model's context holds {context} tokens; the conversation has {prompt_tokens} "
                f"and the answer may have {longest}: shorten one of them",
                param="messages",
                code="context_length_exceeded",
            )
        return longest

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Say why a request may not come in; decided from the raw path and headers alone."""
        if self._terms.token is None:
            refused = refuse_web_pages(scope["headers"])
            return None if refused is None else Refusal(refused.status, refused.message)
        if scope["path"] == "/health" or same_secret(
            bearer_token(scope["headers"]), self._terms.token
        ):
            return None
        return Refusal(401, "the token is missing or wrong", code="invalid_api_key")

    def _check_name(self, name: str) -> None:
        if name != self._terms.name:
            raise Refusal(
                404,
                f"there is no model {name!r} here; this server has {self._terms.name!r}",
                param="model",
                code="model_not_found",
            )

    def _card(self) -> dict[str, object]:
        return {
            "id": self._terms.name,
            "object": "model",
            "created": self._since,
            "owned_by": "orbiter-train",
            "max_model_len": self._policy.context_length,
        }


async def _body(request: Request) -> bytes:
    """Read the body, up to a limit."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refusal(413, f"the request has more than {LARGEST_BODY} bytes")
    return bytes(body)


async def _or_leave(reply: Reply, request: Request) -> None:
    """Wait for the whole answer, unless the client goes away before.

    Raises:
        ClientDisconnect: it did; the answer's rows are dropped.
    """
    whole = asyncio.create_task(reply.finished())
    gone = asyncio.ensure_future(request.receive())  # the body is read: only the end can come
    try:
        await asyncio.wait([whole, gone], return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            raise ClientDisconnect
        await whole
    except ClientDisconnect:
        raise
    except Exception as error:
        raise Refusal(500, f"{type(error).__name__}: {error}") from error
    finally:
        reply.leave()
        whole.cancel()
        gone.cancel()


async def _refused(_: Request, refusal: Refusal) -> Response:
    headers = {"retry-after": "1"} if refusal.status == 429 else None
    return _json(refusal.body(), refusal.status, headers)


async def _no_route(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path}: {error.detail}"
    return _json(Refusal(error.status_code, what).body(), error.status_code, error.headers)


def _json(body: object, status: int = 200, headers: Any = None) -> Response:  # noqa: ANN401 - starlette's own loose mapping
    return Response(
        msgspec.json.encode(body), status, media_type="application/json", headers=headers
    )
