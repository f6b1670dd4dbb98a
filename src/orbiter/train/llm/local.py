"""A local model as a `ChatModel`: SmolLM2 or any Hugging Face model, in batches.

    model = LocalChatModel("smollm2-135m")
    answer = await model([{"role": "user", "content": "What is a monad?"}])

Questions that are pending at the same time are answered in one batch, by the engine that also
trains. An answer depends on the messages, the seed and the sample index, not on other questions. No
grammar constrains the answers, so a small model's JSON has to be checked (`ask_for` does).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from orbiter.train.chat.message import Message
from orbiter.train.errors import ConfigError, DataError, require
from orbiter.train.llm.chat import Answer, ChatModel
from orbiter.train.seeding import sub_seed

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.rollout import Rollout

GATHER_SECONDS = 0.005
"""How long a first question waits for others to join its batch."""


class LocalChatModel:
    """A `ChatModel` on this machine; the first question loads the weights."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2-135m",
        *,
        max_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        """Store the settings; nothing is loaded yet.

        Args:
            model: "smollm2-135m", "tiny", a folder, or a Hugging Face name.
            max_tokens: Maximum tokens of an answer.
            temperature: 0 takes the most likely token; then all samples are the same.
            top_p: Share of the probability mass that tokens are drawn from.
            seed: Seed of the random draws.
            batch_size: Maximum questions per batch: more need more memory and are faster.
            device: "cpu", "cuda", "mps", or "auto".
        """
        if max_tokens < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ConfigError(
                "max_tokens and batch_size must be at least 1, temperature at least 0 and top_p in "
                f"(0, 1], got {max_tokens=}, {batch_size=}, {temperature=}, {top_p=}"
            )
        self._source = model
        self._max_tokens, self._temperature, self._top_p = max_tokens, temperature, top_p
        self._seed, self._batch_size, self._device = seed, batch_size, device
        self._policy: Policy | None = None
        self._waiting: list[_WaitingQuestion] = []
        self._worker: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return os.fspath(self._source)

    @property
    def fingerprint(self) -> str:
        """Identifies what determines the answers."""
        return repr((self.name, self._max_tokens, self._temperature, self._top_p, self._seed))

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        """Return the answer to the conversation so far.

        Raises:
            DataError: the conversation is too long for the model, or cannot be rendered.
            StorageError: the model cannot be loaded.
        """
        return await self.answer(messages, index=0)

    def sample(self, index: int) -> ChatModel:
        """Return the model whose answers are the `index`-th sample, from 0."""
        return _WantedAnswer(self, index)

    async def answer(self, messages: Sequence[Message], *, index: int) -> Answer:
        """Return the `index`-th answer."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Answer] = loop.create_future()
        # Copied, since the caller may go on with its list before the batch begins.
        self._waiting.append(_WaitingQuestion([dict(m) for m in messages], index, reply))
        # A program may call asyncio.run several times; the worker of an ended loop never answers.
        if self._worker is None or self._worker.done() or self._worker.get_loop() is not loop:
            self._worker = asyncio.create_task(self._work())
        return await reply

    async def _work(self) -> None:
        """Answer the pending questions, batch after batch, until the queue is empty."""
        batch: list[_WaitingQuestion] = []
        try:
            work = await asyncio.to_thread(_engine_work)
            # Questions that start together arrive within a few milliseconds.
            await asyncio.sleep(GATHER_SECONDS)
            while batch := self._next_batch():
                try:
                    answers = await work(self._answer_all, batch)
                except Exception as error:  # passed on to the callers
                    answers = [error] * len(batch)
                for question, answer in zip(batch, answers, strict=True):
                    question.resolve(answer)
        except BaseException as error:  # no caller may wait for a worker that has ended
            for question in (*batch, *self._waiting):
                question.resolve(error)
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise

    def _next_batch(self) -> list[_WaitingQuestion]:
        """Take the next questions from the queue, dropping those whose caller has left."""
        waiting = [question for question in self._waiting if not question.reply.done()]
        self._waiting = waiting[self._batch_size :]
        return waiting[: self._batch_size]

    def _answer_all(self, batch: Sequence[_WaitingQuestion]) -> list[Answer | BaseException]:
        """Answer a batch; a question that cannot be rendered fails without the others."""
        from orbiter.train.engine.sample import sample

        policy = self._policy = self._policy or _load(self._source, self._device)
        prompts = [_rendered(policy, question, self._max_tokens) for question in batch]
        good = [row for row, prompt in enumerate(prompts) if not isinstance(prompt, DataError)]
        rollouts = sample(
            policy,
            [prompt for prompt in prompts if not isinstance(prompt, DataError)],
            max_new_tokens=self._max_tokens,
            temperature=self._temperature,
            top_p=self._top_p,
            # One for each question, so an answer does not depend on what else is in the batch.
            seed=[self._seed_of(batch[row]) for row in good],
            max_rows=self._batch_size,
        )
        drawn = iter(rollouts)
        return [p if isinstance(p, DataError) else _as_answer(next(drawn)) for p in prompts]

    def _seed_of(self, question: _WaitingQuestion) -> int:
        # Sorted keys: the same conversation gets the same answer, however its dicts were built.
        asked = msgspec.json.encode(question.messages, order="deterministic").decode()
        return sub_seed(self._seed, "chat", asked, question.index)


@dataclass(slots=True)
class _WaitingQuestion:
    """A question whose caller waits for the answer."""

    messages: list[Message]
    index: int
    reply: asyncio.Future[Answer]

    def resolve(self, answer: Answer | BaseException) -> None:
        if self.reply.done() or self.reply.get_loop().is_closed():
            return  # the caller has left
        if isinstance(answer, Answer):
            self.reply.set_result(answer)
        elif isinstance(answer, asyncio.CancelledError):
            self.reply.cancel()
        else:
            self.reply.set_exception(answer)


@dataclass(frozen=True, slots=True)
class _WantedAnswer:
    """One of several answers to the same messages."""

    model: LocalChatModel
    index: int

    @property
    def name(self) -> str:
        return self.model.name

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        return await self.model.answer(messages, index=self.index)

    def sample(self, index: int) -> ChatModel:
        return _WantedAnswer(self.model, index)


def _load(source: str | os.PathLike[str], device: str) -> Policy:
    require("torch", extra="train")
    from orbiter.train.engine.models.load import load_model
    from orbiter.train.engine.policy import make_policy

    loaded = load_model(source, device=device)
    policy = make_policy(loaded.model, loaded.tokenizer, device=device)
    policy.model.requires_grad_(False)
    return policy


def _rendered(policy: Policy, question: _WaitingQuestion, max_tokens: int) -> list[int] | DataError:
    """Return the conversation as tokens, or an error that says why it cannot be rendered."""
    from orbiter.train.engine.prompt import render
    from orbiter.train.trajectory import TrajectoryItem

    try:
        last = str(question.messages[-1].get("content")) if question.messages else ""
        token_ids = render(policy.tokenizer, TrajectoryItem(last, "", messages=question.messages))
    except DataError as error:
        return error
    room = policy.context_length - max_tokens
    if len(token_ids) > room:
        return DataError(
            f"the conversation has {len(token_ids)} tokens, and the model's context leaves room "
            f"for {room} beside an answer of {max_tokens}"
        )
    return token_ids


def _as_answer(rollout: Rollout) -> Answer:
    return Answer(
        rollout.text.strip(),
        prompt_tokens=rollout.prompt_length,
        completion_tokens=len(rollout.completion_ids),
    )


def _engine_work() -> Callable[..., Awaitable[list[Answer | BaseException]]]:
    """Import the engine, which takes seconds the first time."""
    from orbiter.train.engine.thread import work

    return work
