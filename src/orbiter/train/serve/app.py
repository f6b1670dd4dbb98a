"""The HTTP routes: parse a request, have it answered, and send the answer.

Sockets, start and stop of the server are in `server.py`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from orbiter.train.net import bearer_token, refuse_web_pages, same_secret
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.answering import Answering, as_refusal, too_long
from orbiter.train.serve.asked import ChatRequest, Refusal, SharedFields
from orbiter.train.serve.batching import Batcher
from orbiter.train.serve.dialects import DIALECTS, Dialect
from orbiter.train.serve.reply import DrawSettings, GrowingReply
from orbiter.train.serve.stream import events
from orbiter.train.serve.terms import Terms

LARGEST_BODY = 16 << 20
"""The largest accepted request body, in bytes."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Endpoint:
    """Answers requests to one model, under one name."""

    def __init__(self, answering: Answering[Batcher], terms: Terms) -> None:
        """Serve this model on these terms."""
        self._answering, self._policy = answering, answering.policy
        self._batcher, self._terms = answering.batcher, terms
        # Also the number that the seed of a request without one is drawn from.
        self._asked = 0
        self._since = int(time.time())

    def app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return the ASGI application."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
        ]
        for dialect in DIALECTS:
            answer = partial(self.answer, dialect)
            routes.append(Route(f"/v1{dialect.path}", answer, methods=["POST"]))
        handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _no_route}
        app = Starlette(routes=routes, exception_handlers=handlers)

        # Before the routes, so that a refused client learns nothing about what exists.
        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            refusal = self._refusal(scope) if scope["type"] == "http" else None
            answer = app if refusal is None else _json(refusal.body(), refusal.status)
            await answer(scope, receive, send)

        return guarded

    async def health(self, _: Request) -> Response:
        """Report that the server is running and how busy it is; needs no token."""
        batcher = self._batcher
        return _json(
            {
                "status": "ok",
                "model": self._terms.name,
                "asked": self._asked,
                "running": batcher.running,
                "waiting": batcher.waiting,
                "prompt_tokens": batcher.asked_tokens,
                "prompt_tokens_run": batcher.run_tokens,
                "weights_version": batcher.version,
            }
        )

    async def models(self, _: Request) -> Response:
        """List the one model."""
        return _json({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        self._check_name(request.path_params["model"])
        return _json(self._card())

    async def answer(self, dialect: Dialect, request: Request) -> Response:
        """Answer a conversation, in one piece or as a stream."""
        try:
            return await self._answer(dialect, request)
        except Refusal as refusal:
            # Clients of both APIs wait for this long and try again.
            headers = {"retry-after": "1"} if refusal.status in (429, 503) else None
            return _json(dialect.refused(refusal), refusal.status, headers)

    async def _answer(self, dialect: Dialect, request: Request) -> Response:
        asked = dialect.parse(await _body(request)).request
        self._check_name(asked.model)
        if self._terms.return_token_ids:
            # The server was started for training, which needs both whatever the agent asks for.
            asked = msgspec.structs.replace(asked, return_token_ids=True, logprobs=True)
        # Taken before the next await, so that two requests cannot get the same number.
        number = self._asked
        self._asked += 1
        prompt_ids = await self._answering.prompt(asked)
        reply = self._answering.submit(prompt_ids, self._sampling(asked, len(prompt_ids), number))
        shared = SharedFields(uuid.uuid4().hex, int(time.time()), self._terms.name)
        writer = dialect.writer(reply, asked, shared, self._policy.tokenizer)
        if asked.stream:
            stream = events(reply, asked, writer, refusal=as_refusal)
            return StreamingResponse(stream, media_type="text/event-stream")
        await _or_leave(reply, request)
        return _json(writer.whole())

    def _sampling(self, asked: ChatRequest, prompt_tokens: int, number: int) -> DrawSettings:
        """Check that the answer fits, and fill in the settings that the request does not give."""
        n, most = asked.n or 1, self._terms.max_rows
        if n > most:
            raise Refusal(400, f"n={n} is more than this server's {most}", param="n")
        own = sub_seed(self._terms.seed, "request", number)
        return DrawSettings(
            n=n,
            max_new_tokens=self._longest(asked, prompt_tokens),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=own if asked.seed is None else asked.seed,
            top_logprobs=asked.top_logprobs or 0,
            stops=asked.stops,
            # Text that is not streamed need not be decoded while it grows.
            live=bool(asked.stream),
        )

    def _longest(self, asked: ChatRequest, prompt_tokens: int) -> int:
        """Return the answer's maximum length: as requested, or the server's default if it fits."""
        context = self._policy.context_length
        room = context - prompt_tokens
        # A default is shortened to fit; a length that was asked for is refused instead.
        longest = asked.longest or max(1, min(self._terms.max_tokens, room))
        if longest > room:
            raise too_long(context, prompt_tokens, longest)
        return longest

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request is refused, judged by raw path and headers; None if it is not."""
        # A server without a token is on this machine only, and must not be reached by a web page.
        if self._terms.token is None:
            refused = refuse_web_pages(scope["headers"])
            return None if refused is None else Refusal(refused.status, refused.message)
        # Anthropic's clients send the token in a header of another name.
        sent = bearer_token(scope["headers"]) or Headers(scope=scope).get("x-api-key", "")
        # Probes of an orchestrator have no token.
        if scope["path"] == "/health" or same_secret(sent, self._terms.token):
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
        # Checked as it arrives: Content-Length may be missing or wrong.
        if len(body) > LARGEST_BODY:
            raise Refusal(413, f"the request has more than {LARGEST_BODY} bytes")
    return bytes(body)


async def _or_leave(reply: GrowingReply, request: Request) -> None:
    """Wait for the whole answer, unless the client disconnects first.

    Raises:
        ClientDisconnect: it did; the answer's rows are dropped.
    """
    whole = asyncio.create_task(reply.finished())
    # the body has been read, so the next message can only be a disconnect
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([whole, gone], return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            raise ClientDisconnect
        await whole
    except ClientDisconnect:
        raise
    except Exception as error:
        raise as_refusal(error) from error
    finally:
        # Also after success, where it does nothing.
        reply.leave()
        whole.cancel()
        gone.cancel()


async def _refused(_: Request, refusal: Refusal) -> Response:
    return _json(refusal.body(), refusal.status)


async def _no_route(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path}: {error.detail}"
    return _json(Refusal(error.status_code, what).body(), error.status_code, error.headers)


def _json(body: object, status: int = 200, headers: Any = None) -> Response:  # noqa: ANN401 - starlette's own loose mapping
    return Response(
        msgspec.json.encode(body), status, media_type="application/json", headers=headers
    )
