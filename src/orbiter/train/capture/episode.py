"""A running episode: its model calls become items, its outcome their reward.

`transport.py` and `proxy.py` observe the calls; `record.py` begins and ends episodes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple, cast

from orbiter.train.capture.conversation import (
    Conversations,
    DecodedRequest,
    NotACall,
    RequestHistory,
)
from orbiter.train.capture.encoding import decoded
from orbiter.train.capture.exchange import Exchange
from orbiter.train.capture.item import (
    UnansweredRequest,
    cleaned,
    completed,
    item_of,
    metadata_of,
    read,
)
from orbiter.train.capture.joining import Joins, ToolRun
from orbiter.train.capture.redact import Redactor
from orbiter.train.capture.wire import Recognised
from orbiter.train.chat.reply import Reply, Unreadable, decode
from orbiter.train.errors import DataError
from orbiter.train.json_files import fields
from orbiter.train.redact import mask_text, secrets_of_the_environment
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

log = logging.getLogger(__name__)
_UNREADABLE = (Unreadable, KeyError, TypeError, AttributeError, ValueError)
"""Exceptions that parsing an answer of an unexpected shape may raise."""


class _Final(NamedTuple):
    reward: float
    gamma: float


class _Background(NamedTuple):
    """A response that the server is still computing."""

    step: int
    """The step whose item waits for the response."""
    asked: DecodedRequest
    talk: RequestHistory


class Episode:
    """One attempt at a task, created by `record`, or by the proxy for each session.

    Safe to use from several threads and tasks at once.
    """

    def __init__(
        self,
        dataset: TrajectoryDataset,
        *,
        agent: str | None = None,
        task_id: str | None = None,
        episode_id: str | None = None,
        redactor: Redactor | None = None,
        parent: Episode | None = None,
        first_step: int = 0,
    ) -> None:
        """Start an episode; a nested one inherits its parent's task unless `task_id` is given."""
        self.dataset = dataset
        self.agent = agent
        self.parent = parent
        self.id = episode_id or os.urandom(16).hex()
        """The `episode_id` of its items."""
        inherited = parent.task_id if parent is not None else None
        self.task_id: str | None = inherited if task_id is None else task_id
        self.failures: list[UnansweredRequest] = []
        """Model requests that got no answer, retried ones included."""
        self.other_requests: dict[str, int] = {}
        """Counts of requests that did not go to a model, by method and address."""
        self.errors: list[Exception] = []
        """Why calls could not be kept; `record` raises the first at the end of its block."""
        self.calls = 0
        """Items captured, including those of nested episodes."""
        self._redactor = redactor or Redactor()
        self._lock = threading.RLock()
        self._step = first_step
        self._open: set[Exchange] = set()
        self._talks = Conversations()
        self._joins = Joins()
        self._failed: list[UnansweredRequest] = []
        self._background: dict[str, _Background] = {}
        """Unfinished background responses by id; the agent continues meanwhile."""
        self._final: _Final | None = None
        self._left = False

    # Called by the user.

    def reward(self, reward: float, gamma: float = 1.0) -> None:
        """Set the episode's reward, discounted by `gamma` for each step before the last one.

        Inside the `with` block it takes effect when the block ends, so that it reaches every call.
        Steps that already have a reward keep it.

        Raises:
            DataError: the episode is over and none of its steps waits for a reward.
        """
        self._final = _Final(reward, gamma)
        if self._left:
            self.settle()

    def step_reward(self, reward: float) -> TrajectoryItem | None:
        """Reward the latest step alone; return the stored item.

        Raises:
            DataError: there is no step yet, or the latest one already has a reward.
        """
        with self._lock:
            if not self._step:
                raise DataError("there is no step to reward yet: no call was captured")
            # First: a step that has its reward cannot be changed any more.
            self._join()
            return self.dataset.revise(
                self.id, self._step - 1, lambda item: replace(item, reward=reward)
            )

    def add(
        self,
        state: str,
        action: str,
        reward: float | None = None,
        metadata: Mapping[str, object] | None = None,
        *,
        messages: Sequence[Mapping[str, object]] | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_calls: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        """Record a step by hand, for an agent whose model calls cannot be captured."""
        values = [state, action, dict(metadata or {}), messages, tools, tool_calls]
        clean = self._redactor.cleaner(())
        if clean is not None:
            values = clean(decode(fields.encode(values))).value
        state, action, metadata, messages, tools, tool_calls = cast("list[Any]", values)
        with self._lock:
            self._keep(
                TrajectoryItem(
                    state,
                    action,
                    reward,
                    {**(metadata or {}), **self._family()},
                    messages=messages,
                    tools=tools,
                    tool_calls=tool_calls,
                    task_id=self.task_id,
                    episode_id=self.id,
                    step=self._step,
                    agent=self.agent,
                    timestamp=time.time(),
                )
            )

    @property
    def steps(self) -> int:
        """Number of steps captured so far, without those of nested episodes."""
        return self._step

    @property
    def over(self) -> bool:
        """Whether the block has ended; threads that still run then are not captured."""
        return self._left

    @property
    def busy(self) -> bool:
        """Whether a reply is still coming in."""
        return bool(self._open)

    # Called by whatever sees the traffic.

    def begin(
        self,
        recognised: Recognised,
        body: bytes,
        secrets: tuple[str, ...] = (),
        *,
        address: str = "",
        encoding: str = "",
    ) -> Exchange:
        """Return a new exchange of this episode, ready to receive the response bytes.

        Args:
            recognised: The API of the request.
            body: The request.
            secrets: The keys in its headers, to be removed from its texts.
            address: What messages call the request, as "POST host/path".
            encoding: The request's content encoding.
        """
        unreadable = None
        try:
            body = decoded(body, encoding)
        except Unreadable as problem:
            unreadable = str(problem)
        exchange = Exchange(self.ended, recognised, body, secrets, address)
        exchange.unreadable = unreadable
        with self._lock:
            self._open.add(exchange)
        return exchange

    def ended(self, exchange: Exchange, body: bytes, error: str | None) -> None:
        """Process a finished exchange: an answer becomes an item, anything else a failure."""
        with self._lock:
            self._open.discard(exchange)
            try:
                self._take(exchange, body, error)
            except Exception as problem:
                # an error of ours must not reach the agent as if the model had failed
                log.error("a call could not be captured: %s", problem)
                self.errors.append(problem)
                exchange.failure = problem

    def note_other(self, request: str) -> None:
        """Count a request that did not go to a model, to help explain an empty capture."""
        # Only a few addresses are kept: a web agent may call thousands.
        if request in self.other_requests or len(self.other_requests) < 8:
            self.other_requests[request] = self.other_requests.get(request, 0) + 1

    def tool_ran(self, run: ToolRun) -> None:
        """Store a tool execution with the call that requested it."""
        with self._lock:
            self._joins.tool_ran(run)

    def called_by(
        self, response_id: str | None, agent: str | None, branch: Mapping[str, object] | None = None
    ) -> None:
        """Store who made the call that got `response_id`; None means the latest call."""
        with self._lock:
            self._joins.called_by(response_id, agent, branch or {})

    # Called at the end of the block.

    def leave(self) -> None:
        """End the episode: close streams that nobody read to the end, and apply hook data."""
        # A copy, since closing removes from the set.
        for exchange in tuple(self._open):
            exchange.close("still open when the episode was left")
        with self._lock:
            self._left = True
            self._join()

    def settle(self) -> None:
        """Assign the reward given inside the block, if there was one."""
        if self._final is not None:
            self.dataset.assign_reward(self.id, self._final.reward, self._final.gamma)

    def abandon(self, error: str) -> None:
        """Record on the latest step why the episode ended early."""
        with self._lock:
            self._joins.note(self._step - 1, {"episode_error": error})

    def _take(self, exchange: Exchange, body: bytes, error: str | None) -> None:
        if exchange.retrieves is not None:
            self._add_retrieved(exchange, body, error)
            return
        try:
            if exchange.unreadable is not None:
                raise Unreadable(exchange.unreadable)
            wire = exchange.wire
            asked = self._talks.follow(wire, exchange.body, certain=exchange.certain)
            reply = read(exchange, body, error)
            # An error without any text is a failure; with some text it is an incomplete answer.
            if reply.is_empty() and reply.error is not None:
                self._fail(exchange, reply.error)
                return
        except NotACall:
            self.note_other(exchange.address)
            return
        except _UNREADABLE as problem:
            # An address that is only likely a model's, with an unreadable answer, was probably no
            # model.
            if not exchange.certain and exchange.status < 400:
                self.note_other(exchange.address)
                return
            if exchange.status < 400 and error is None:
                log.warning("a model's answer could not be read: %s", problem)
            self._fail(exchange, error or str(problem))
            return
        self._answer(exchange, asked, reply)

    def _add_retrieved(self, exchange: Exchange, body: bytes, error: str | None) -> None:
        """Complete the item of a background response that has now been fetched."""
        waiting = self._background.get(exchange.retrieves or "")
        if waiting is None:
            self.note_other(exchange.address)
            return
        try:
            reply = read(exchange, body, error)
        except _UNREADABLE as problem:
            self._fail(exchange, error or str(problem))
            return
        if reply.pending:
            return
        if reply.is_empty() or reply.response_id is None:
            self._fail(exchange, reply.error or "the response could not be fetched")
            return
        del self._background[exchange.retrieves or ""]
        talk, reply = self._cleaned(exchange, waiting.talk, reply)
        # The calls before it had their own failures, so none belong to this item.
        entries = metadata_of(exchange, talk, reply, []) | {"background": True}
        complete = item_of(talk, reply, episode_id=self.id, step=waiting.step, metadata=entries)
        self._join()
        self.dataset.revise(self.id, waiting.step, lambda item: completed(item, complete))
        self._talks.answered(waiting.asked, talk, reply)
        self._joins.answered(waiting.step, reply.response_id, reply.tool_calls)

    def _fail(self, exchange: Exchange, error: str) -> None:
        clean = self._redactor.cleaner(exchange.secrets)
        # Remove secrets before shortening: half a secret would not be recognised.
        text = error if clean is None else clean(error).value
        shown = mask_text(text, secrets_of_the_environment())[:500]
        self._failed.append(UnansweredRequest(exchange.status, shown))
        self.failures.append(self._failed[-1])

    def _cleaned(
        self, exchange: Exchange, talk: RequestHistory, reply: Reply
    ) -> tuple[RequestHistory, Reply]:
        """Return a reply without secrets, for a conversation already cleaned of them."""
        clean = self._redactor.cleaner([s for s in exchange.secrets if reply.contains(s)])
        return talk, reply if clean is None else cleaned(reply, clean, prompt_too=talk.redacted)

    def _answer(self, exchange: Exchange, asked: DecodedRequest, reply: Reply) -> None:
        # A secret is only searched for where it occurs, as cleaning is slow for long texts.
        shown = [s for s in exchange.secrets if s.encode() in exchange.body or reply.contains(s)]
        clean = self._redactor.cleaner(shown)
        talk = self._talks.read(asked, clean)
        if clean is not None:
            reply = cleaned(reply, clean, prompt_too=talk.redacted)
        if reply.pending:
            reply.error = f"not complete: the response is {reply.finish_reason}, to be fetched"
        self._keep(
            item_of(
                talk,
                reply,
                task_id=self.task_id,
                episode_id=self.id,
                step=self._step,
                agent=exchange.agent or self.agent,
                timestamp=exchange.started,
                metadata=metadata_of(exchange, talk, reply, self._failed) | self._family(),
            )
        )
        # Failures before an answer are its retries, and were stored with its item.
        self._failed = []
        if reply.pending and reply.response_id is not None:
            self._background[reply.response_id] = _Background(self._step - 1, asked, talk)
            return
        self._talks.answered(asked, talk, reply)
        self._joins.answered(self._step - 1, reply.response_id, reply.tool_calls)

    def _family(self) -> dict[str, object]:
        return {} if self.parent is None else {"parent_episode": self.parent.id}

    def _keep(self, item: TrajectoryItem) -> None:
        # Before the next item, since hooks report on the one before.
        self._join()
        self.dataset.capture(item)
        self._step += 1
        episode: Episode | None = self
        # A nested episode's calls also count for the episodes around it.
        while episode is not None:
            episode.calls += 1
            episode = episode.parent

    def _join(self) -> None:
        """Apply what hooks have reported since the last call to the steps concerned."""
        for step, change in self._joins.take():
            try:
                self.dataset.revise(self.id, step, change)
            except DataError:
                log.warning(
                    "episode %s: step %d already has its reward and stays unchanged", self.id, step
                )


CURRENT: ContextVar[Episode | None] = ContextVar("orbiter_episode", default=None)
"""The innermost episode that encloses the running code.

Tasks and `asyncio.to_thread` inherit it; `threads.py` carries it into plain threads.
"""
