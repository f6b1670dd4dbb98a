"""A model that is compared: on this machine or at an endpoint, answering the same items."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, Protocol

from orbiter.train.callback import map_bounded
from orbiter.train.chat.message import Message, text_of
from orbiter.train.errors import ConfigError
from orbiter.train.llm import ChatModel, ask, name_of, sample_of
from orbiter.train.runlog.cost import Cost
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import RewardSpec, score
from orbiter.train.verl.tasks import as_tasks
from orbiter.train.verl.trainer import VeRLTrainer

if TYPE_CHECKING:
    from orbiter.train.verl.evaluate import ScoredAttempt

ENDPOINT_CONCURRENCY = 16


class Outcome(NamedTuple):
    """How a model did on one item: means over its samples."""

    total: float | None
    """The total reward; None if every attempt failed or could not be scored."""
    rewards: Mapping[str, float | None]
    output: str
    """The first answer."""


class Contestant(Protocol):
    """Answers items, and knows what that has cost."""

    name: str
    cost: Cost

    async def check(self, task: object) -> None:
        """Find out that it can answer, before the other model has worked for nothing.

        Raises:
            TrainError: it cannot; says why.
        """

    async def outcomes(self, tasks: Sequence[object]) -> list[Outcome]:
        """Return how it does on each task."""

    def close(self) -> None:
        """Release the model; a later call loads it again."""


@dataclass(slots=True, kw_only=True)
class LocalContestant:
    """A model, a run's model or an adapter on this machine, alone or inside an agent."""

    name: str
    config: VeRLConfig
    """Its `model` is what is measured."""
    rewards: Sequence[RewardSpec]
    agent: object = None
    environment: object = None
    samples: int = 0
    cost: Cost = field(default_factory=Cost)
    _trainer: VeRLTrainer | None = None

    async def check(self, task: object) -> None:
        """Fetch the model if it is not on this machine, and read its structure.

        Raises:
            StorageError: there is no such model, it is damaged, or it is a reward model.
            ConfigError: the engine does not support it.
        """
        del task
        from orbiter.train.engine.thread import work

        await work(self._check_model)

    def _check_model(self) -> None:
        from orbiter.train.engine.models.load import ensure_model
        from orbiter.train.engine.models.outline import make_outline
        from orbiter.train.engine.models.saved_files import refuse_reward_model

        # Not loaded: with a single look, the two models are never in memory together.
        ensure_model(self.config.model, trust_remote_code=self.config.trust_remote_code)
        refuse_reward_model(Path(self.config.model).expanduser())
        make_outline(self.config, reference=False, value_head=False)

    async def outcomes(self, tasks: Sequence[object]) -> list[Outcome]:
        """Answer each task, and return its rewards; the first call loads the model."""
        self._trainer = self._trainer or VeRLTrainer(
            self.config, self.rewards, agent=self.agent, environment=self.environment
        )
        await self._trainer.policy()  # the cost does not include loading
        began = time.perf_counter()
        assessment = await self._trainer.assess(list(tasks), samples=self.samples)
        tokens = int(assessment.metrics.extra.get("tokens", 0))
        self.cost += Cost(tokens=tokens, seconds=time.perf_counter() - began)
        # 0 samples mean one greedy answer.
        n = max(1, self.samples)
        attempts = assessment.attempts
        return [_outcome(attempts[at : at + n]) for at in range(0, len(attempts), n)]

    def close(self) -> None:
        """Release the model."""
        self._trainer = None


@dataclass(slots=True, kw_only=True)
class EndpointContestant:
    """A model that is asked over the network, or any other `ChatModel`."""

    name: str
    model: ChatModel
    rewards: Sequence[RewardSpec]
    config: VeRLConfig
    """For the system prompt, and how rewards are called."""
    samples: int = 0
    concurrency: int = ENDPOINT_CONCURRENCY
    cost: Cost = field(default_factory=Cost)
    _checked: list[str] = field(default_factory=list)
    """The answer that `check` got; the first task of `outcomes` is the same one."""

    async def check(self, task: object) -> None:
        """Ask the model about the first task, since an endpoint cannot be checked otherwise.

        Raises:
            CallbackError: the call failed.
        """
        self._checked = [await self._answer((as_tasks([task]).items[0], 0))]

    async def outcomes(self, tasks: Sequence[object]) -> list[Outcome]:
        """Ask the model about each task, and return the rewards of its answers.

        Raises:
            CallbackError: a call or a reward failed.
        """
        items = as_tasks(tasks).items
        n = max(1, self.samples)
        asked = [(item, index) for item in items for index in range(n)]
        began = time.perf_counter()
        known, self._checked = self._checked, []
        rest = await map_bounded(asked[len(known) :], self._answer, concurrency=self.concurrency)
        outputs = [*known, *rest]
        self.cost += Cost(seconds=time.perf_counter() - began)
        scores = await score(
            outputs,
            [item for item, _ in asked],
            self.rewards,
            on_error=self.config.on_reward_error,
            timeout_seconds=self.config.reward_timeout_seconds,
            concurrency=self.config.reward_concurrency,
        )
        from orbiter.train.verl.evaluate import attempts_of

        attempts = attempts_of(items, outputs, scores)
        return [_outcome(attempts[at : at + n]) for at in range(0, len(attempts), n)]

    def close(self) -> None:
        """Do nothing: the caller made the client, and closes it."""

    async def _answer(self, asked: tuple[TrajectoryItem, int]) -> str:
        item, index = asked
        answer = await ask(
            sample_of(self.model, index), conversation(item, self.config.system_prompt)
        )
        self.cost += Cost(
            endpoint_calls=0 if answer.cached else 1,
            endpoint_tokens=0
            if answer.cached
            else (answer.prompt_tokens or 0) + (answer.completion_tokens or 0),
            money=answer.cost,
        )
        return answer.text


def conversation(item: TrajectoryItem, system: str | None) -> list[Message]:
    """Return the chat of an item as an endpoint gets it, with its tools as text."""
    from orbiter.train.engine.prompt import tools_in_words

    # Copies, since the system message is taken out below.
    turns = [dict(m) for m in item.messages or [{"role": "user", "content": item.state}]]
    first = text_of(turns.pop(0)["content"]) if turns[0]["role"] == "system" else ""
    head = (system if system is not None else first, tools_in_words(item))
    text = "\n\n".join(part for part in head if part)
    return [{"role": "system", "content": text}, *turns] if text else list(turns)


def contestant_of(
    side: str,
    model: object,
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    *,
    agent: object,
    environment: object,
    samples: int,
) -> Contestant:
    """Return what answers for `model`; `side`, "A" or "B", makes its name unique.

    Raises:
        ConfigError: it is neither the name of a model nor something that can be asked, or it is an
            endpoint and there is an agent.
    """
    if isinstance(model, LocalContestant | EndpointContestant):
        return model
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        return LocalContestant(
            name=f"{side} {model}",
            config=replace(config, model=str(model)),
            rewards=rewards,
            agent=agent,
            environment=environment,
            samples=samples,
        )
    if not callable(model):
        raise ConfigError(
            f"{side} must be a model's name, a folder or a ChatModel, got {type(model).__name__}"
        )
    if agent is not None or environment is not None:
        raise ConfigError(
            f"{side} is asked at an endpoint, which cannot play agent= or environment=: serve the "
            "model on this machine, or compare single answers"
        )
    asked: ChatModel = model
    return EndpointContestant(
        name=f"{side} {name_of(asked)}",
        model=asked,
        rewards=rewards,
        config=config,
        samples=samples,
    )


def _outcome(attempts: Sequence[ScoredAttempt]) -> Outcome:
    names = dict.fromkeys(name for attempt in attempts for name in attempt.rewards)
    return Outcome(
        _mean([attempt.reward for attempt in attempts]),
        {name: _mean([attempt.rewards.get(name) for attempt in attempts]) for name in names},
        attempts[0].output,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
