"""Serve concurrent requests with one model: rows join and leave at every step of the decode loop.

All state lives on the event loop; only the model's step runs on the engine's thread. What a row
draws depends on its own seed and prompt, never on its neighbours. How rows are kept in the model is
in `decoding.py`, the wire formats are in `chat.py`, `responses.py` and `messages.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch

from orbiter.train.engine.thread import work
from orbiter.train.errors import StateError
from orbiter.train.serve.decoding import Decoding, Released, decoding
from orbiter.train.serve.reply import DrawnToken, DrawSettings, GrowingReply
from orbiter.train.serve.rows import AnswerRow, draw, rows_of
from orbiter.train.serve.weights import WeightsWatch

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy

log = logging.getLogger(__name__)

JOIN_TOKENS = 4096
"""The maximum number of new prompt tokens that join in one step, so that active rows wait only
briefly."""
CACHE_BYTES = 1 << 30
"""Memory for the keys and values of cached prefixes, in bytes."""

GATHER_SECONDS = 0.05
"""How long a batch that is about to begin waits for requests whose prompts are being written."""


class StaleWeightsError(StateError):
    """The policy was updated while answers were being drawn from its earlier weights."""


class Batcher:
    """The decode loop. Open it as an async context manager."""

    def __init__(
        self,
        policy: Policy,
        *,
        max_rows: int,
        max_waiting: int,
        cache_bytes: int = CACHE_BYTES,
        on_change: Literal["refresh", "refuse"] = "refresh",
    ) -> None:
        """Decode with this policy; its weights are prepared for sampling when the loop begins.

        Args:
            policy: The model.
            max_rows: The maximum number of answers drawn at the same time.
            max_waiting: The maximum number of requests that wait for a free row.
            cache_bytes: Memory for prefixes that were run before; 0 turns reuse off.
            on_change: What happens when the policy's weights have changed. "refresh": active
                answers end with the weights that they began with (where the model runs through
                Hugging Face's forward, they fail), and later ones use the new weights. "refuse":
                every answer fails with `StaleWeightsError` until `refresh` is called.
        """
        self._policy, self._max_rows, self._max_waiting = policy, max_rows, max_waiting
        self._cache_bytes, self._on_change = cache_bytes, on_change
        self._waiting: deque[GrowingReply] = deque()
        self._rows: list[AnswerRow] = []
        self._wanted = asyncio.Event()
        self._closed = False
        self._refreshing: list[asyncio.Future[None]] = []
        self._releasing: list[asyncio.Future[None]] = []
        self._announced = 0
        self._all_here = asyncio.Event()
        self._all_here.set()
        self._earlier_asked = self._earlier_run = 0
        self.version = 0
        """How often the weights were reloaded since the loop began."""

    @property
    def running(self) -> int:
        """The number of answers that are being drawn."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """The number of requests whose answers have not begun."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the waiting list is full, so that the next request should be refused."""
        return len(self._waiting) >= self._max_waiting

    @property
    def asked_tokens(self) -> int:
        """The prompt tokens of all answers so far, counting a repeated prompt each time."""
        return self._earlier_asked + self._decoding.asked_tokens

    @property
    def run_tokens(self) -> int:
        """The prompt tokens that the model actually processed for them."""
        return self._earlier_run + self._decoding.run_tokens

    def submit(self, prompt_ids: Sequence[int], sampling: DrawSettings) -> GrowingReply:
        """Queue a request; its answers begin at the next step with free rows."""
        if self._closed:
            raise StateError("the server is closing")
        reply = GrowingReply(prompt_ids, sampling, self._policy)
        self._waiting.append(reply)
        self._wanted.set()
        return reply

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """Announce a request for as long as its prompt is being written.

        Agents that got their answers in the same step ask again one after the other. Without this
        the first of them would be run alone, and each of the others join at a later step.
        """
        self._announced += 1
        self._all_here.clear()
        try:
            yield
        finally:
            self._announced -= 1
            if not self._announced:
                self._all_here.set()

    async def refresh(self) -> None:
        """Wait for the active answers to end, then load the policy's current weights.

        Waiting requests begin after that, with the new weights.
        """
        await self._done_in(self._refreshing)

    async def release(self) -> None:
        """Wait for the active answers to end, then drop the prepared weights and the caches.

        An update needs the memory. Until `refresh`, every request fails with `StaleWeightsError`.
        """
        await self._done_in(self._releasing)

    async def _done_in(self, asked: list[asyncio.Future[None]]) -> None:
        """Let the loop do this when no answer is active."""
        # Created on the loop's thread: futures belong to one loop.
        done = asyncio.get_running_loop().create_future()
        asked.append(done)
        self._wanted.set()
        await done

    async def __aenter__(self) -> Batcher:
        """Start the decode loop."""
        await self._lay_out()
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the loop; every request that is still waiting fails."""
        self._closed = True
        # At an await; the engine's work in progress ends first, see `thread.work`.
        self._loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._loop
        closed = StateError("the server was closed before the answer was complete")
        # Also requests that never began, or their clients would wait for ever.
        for reply in (*(row.reply for row in self._rows), *self._waiting):
            reply.fail(closed)
        for done in (*self._refreshing, *self._releasing):
            if not done.done():
                done.set_exception(closed)

    async def _lay_out(self) -> None:
        """Copy the current weights into a decoder without rows."""
        # With a snapshot, active answers end with the weights that they began with.
        snapshot = self._on_change == "refresh"

        def make() -> tuple[Decoding, WeightsWatch]:
            made = decoding(self._policy, cache_bytes=self._cache_bytes, snapshot=snapshot)
            # Watched from the same moment at which the weights were copied, on the same thread.
            return made, WeightsWatch(self._policy)

        self._decoding, self._watch = await work(make)

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                if not self._rows:
                    await self._between_batches()
                await self._step()
            # A model that fails must not end the server: every request gets an answer or an error.
            except StaleWeightsError as error:
                await self._give_up(error)
            except Exception as error:
                await self._recover(error)
            # Cleared last, since each of these may have been added during the awaits.
            if not (self._rows or self._waiting or self._refreshing or self._releasing):
                self._wanted.clear()

    async def _between_batches(self) -> None:
        """Do what must wait until no answer is active, since answers end with their weights."""
        if self._releasing:
            await work(self._release)
            _resolve(self._releasing)
        if self._refreshing:
            await self._refresh()
        if not self._all_here.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_here.wait(), GATHER_SECONDS)

    async def _refresh(self) -> None:
        """Load the current weights; no row is active."""
        # The new decoder counts from 0.
        asked, run = self.asked_tokens, self.run_tokens
        await self._lay_out()
        self._earlier_asked, self._earlier_run = asked, run
        self.version += 1
        _resolve(self._refreshing)

    def _release(self) -> None:
        """Drop the decoder, on the engine's thread."""
        self._decoding = Released(self._decoding, _refuse_released)

    async def _give_up(self, error: StaleWeightsError) -> None:
        """Fail the active answers, and without an automatic refresh the waiting ones as well."""
        lost = [row.reply for row in self._rows]
        self._rows = []
        if self._on_change == "refuse":
            lost += self._waiting
            self._waiting.clear()
            # The rows were dropped, but the decoder still holds them: `refresh` makes a new one.
            await work(self._decoding.keep, [])
        else:
            await self._refresh()
        for reply in lost:
            reply.fail(error)

    async def _recover(self, error: Exception) -> None:
        """After a failure of the model, restart each row by itself to find the one that causes it.

        Rows that had tokens continue; only requests that fail again when run alone fail.
        """
        log.warning("the model failed (%r); running each answer by itself to find the cause", error)
        rows, self._rows = self._rows, []
        asked, run = self.asked_tokens, self.run_tokens
        await self._lay_out()
        self._earlier_asked, self._earlier_run = asked, run
        # Rows with tokens are put back one by one; a row that fails twice at the same token is the
        # culprit, and only its request fails.
        begun = [row for row in rows if row.choice.tokens]
        # By reply, since all answers of a request begin together; by identity, in order of
        # arrival.
        new = {id(row.reply): row.reply for row in rows if not row.choice.tokens}
        for row in begun:
            if not self._decoding.continuous or row.recovered_at == len(row.choice.tokens):
                row.reply.fail(error)
            if row.wanted and row.reply.error is None:
                row.recovered_at = len(row.choice.tokens)
                await self._try(row.reply, self._again(row))
        for reply in new.values():
            if not self._decoding.continuous:
                reply.fail(error)
            elif not reply.left:
                await self._try(reply, self._alone(reply))

    async def _try(self, reply: GrowingReply, attempt: Coroutine[Any, Any, None]) -> None:
        """Run one part of a recovery; if it fails as well, its request fails and no other."""
        try:
            await attempt
        except Exception as failure:  # as in `_run`
            log.warning("a request failed in the model: %r", failure)
            reply.fail(failure)
            # The failed attempt may have left rows in the decoder beyond the known ones.
            await work(self._decoding.keep, list(range(len(self._rows))))

    async def _again(self, row: AnswerRow) -> None:
        """Put a row that had tokens back into the model."""
        # The last drawn token is not run here, but read in the next step.
        await work(self._decoding.join, [row.run_token_ids()], [1])
        self._rows.append(row)

    async def _alone(self, reply: GrowingReply) -> None:
        """Begin the answers of one request, without any other request."""
        kept = self._rows
        new = rows_of(reply)
        logits = await work(self._decoding.join, [reply.prompt_ids], [reply.sampling.n])
        drawn = await work(draw, logits, new)
        self._rows = kept + new
        for row, token in zip(new, drawn, strict=True):
            row.reply.take(row.choice, token)

    async def _step(self) -> None:
        """Draw one token of every answer, including answers that begin now."""
        # Rows leave before the step, so that no work is done for answers that nobody reads.
        kept = _without([i for i, row in enumerate(self._rows) if not row.wanted], len(self._rows))
        old = [self._rows[index] for index in kept]
        moved = len(kept) < len(self._rows)
        # While weights wait to be replaced, no row joins, so that the active rows can finish.
        changing = self._refreshing or self._releasing
        open_ = not changing and (self._decoding.continuous or not old)
        joining = self._admit(len(old)) if open_ else []
        new = [row for reply in joining for row in rows_of(reply)]
        # Set before the await: if the model fails, `_recover` must know the new rows too.
        self._rows = old + new
        drawn = await work(self._advance, kept if moved else None, old, joining)
        if drawn is None:  # the weights are new, and no answer has begun with the old ones
            self._rows = old
            # In front again and in their order, so that a reload costs no request its place.
            self._waiting.extendleft(reversed(joining))
            # A future that nobody waits for makes the loop refresh as if it had been asked to.
            self._refreshing.append(asyncio.get_running_loop().create_future())
            return
        for row, token in zip(self._rows, drawn, strict=True):
            row.reply.take(row.choice, token)

    def _admit(self, running: int) -> list[GrowingReply]:
        """Take as many requests off the queue as fit, in the order of their arrival."""
        joining: list[GrowingReply] = []
        room, tokens = self._max_rows - running, JOIN_TOKENS
        while self._waiting:
            # Only looked at; taken off once it is clear that it fits.
            first = self._waiting[0]
            # A request whose client has left is taken off without a row.
            new = 0 if first.left else self._decoding.new_tokens(first.prompt_ids)
            # The first request may exceed the limits; otherwise it, and all after it, would wait
            # forever.
            alone = not joining and not running
            fits = (first.sampling.n <= room or alone) and (not joining or new <= tokens)
            if not first.left and not fits:
                break
            self._waiting.popleft()
            if not first.left:
                room, tokens = room - first.sampling.n, tokens - new
                joining.append(first)
        return joining

    def _advance(
        self, kept: Sequence[int] | None, old: Sequence[AnswerRow], joining: Sequence[GrowingReply]
    ) -> list[DrawnToken] | None:
        """Run the model on the engine's thread; None if new weights must be loaded first."""
        if kept is not None:
            self._decoding.keep(kept)
        # Checked on the engine's thread, where updates happen, so nothing changes in between.
        if (old or joining) and self._watch.changed():
            if self._on_change == "refuse":
                raise StaleWeightsError(
                    "the policy's weights were changed while it was being served: call "
                    "`await live.refresh()` after an update and before the next answer"
                )
            # Without a snapshot the active rows would continue with weights that they did not
            # begin with, and their log probabilities would belong to neither policy.
            if old and not self._decoding.snapshot:
                raise StaleWeightsError(
                    "the model was updated while this answer was drawn; ask again"
                )
            if joining:
                return None
        logits = []
        if old:
            # The token drawn in the previous step is read now.
            last = [row.choice.tokens[-1].token_id for row in old]
            logits.append(self._decoding.step(torch.tensor(last, device=self._policy.device)))
        if joining:
            prompts = [reply.prompt_ids for reply in joining]
            logits.append(self._decoding.join(prompts, [reply.sampling.n for reply in joining]))
        # Old rows first, then the new ones: the order of `self._rows`.
        return draw(torch.cat(logits), self._rows) if logits else []


def _resolve(asked: list[asyncio.Future[None]]) -> None:
    """Report to all who wait, and empty the list; a caller that was cancelled no longer waits."""
    for done in asked:
        if not done.done():
            done.set_result(None)
    asked.clear()


def _refuse_released() -> NoReturn:
    raise StaleWeightsError(
        "the weights for sampling were released for an update: call `await live.refresh()` before "
        "the next answer"
    )


def _without(gone: Sequence[int], count: int) -> list[int]:
    """List the remaining rows; the last row fills the gap of a removed one, so few rows move."""
    order = list(range(count))
    # From the back, so that the positions still to be filled stay valid.
    for index in reversed(gone):
        # order[-1] may be the removed row itself, which the pop then drops.
        order[index] = order[-1]
        order.pop()
    return order
