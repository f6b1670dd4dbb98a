"""Run the user's agent in verl's worker: verl's agent loop for whole episodes.

verl makes an `EpisodeLoop` for each episode. All of a process share one `AgentWorker`, which holds
the agent, the rewards and two event loops: one runs the agents, the other answers their model
calls, so that an agent that blocks its loop in a model call still gets its answer.

An episode becomes one `AgentLoopOutput` for each of its token streams (verl keeps them as rows of
one session). A failed episode becomes a row without a trained token, which the sampler
(`episodes.py`) takes out and counts: verl would train on the rest of a group without a word.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from orbiter.train.agents.episode import Episode
from orbiter.train.errors import ConfigError, TrainError
from orbiter.train.serve.remote import Generated, LoopThread, RemotePolicy, ServedModel
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.codec import decode_item
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.cluster.inside.reward import PREFIX, note_fault
from orbiter.train.verl.cluster.inside.shipment import (
    FAULTS,
    load_agent,
    load_rewards,
    read_shipment,
)
from orbiter.train.verl.episodes import with_truncation
from orbiter.train.verl.journal import EpisodeAttempt
from orbiter.train.verl.play import (
    describe_failure,
    play_one,
    rate,
    together,
)
from orbiter.train.verl.reward import SampleScores
from orbiter.train.verl.samples import episode_output

EPISODE = "orbiter_episode"
"""Name of what the sampler reads of an episode, in the extra fields of its rows."""


class EpisodeLoop(AgentLoopBase):  # type: ignore[misc] # verl is untyped here
    """One episode of the user's agent."""

    def __init__(self, *, shipment: str, server_manager: Any, tokenizer: Any, **_: object) -> None:
        """Take verl's client; verl's own tokenisation of chats is not used, so not set up."""
        self.server_manager = server_manager
        self.worker = worker_of(shipment, tokenizer)

    @override
    async def run(
        self,
        sampling_params: dict[str, Any],
        *,
        extra_info: Mapping[str, Any],
        uid: str,
        session_id: int,
        **_: object,
    ) -> list[AgentLoopOutput]:
        """Play one episode, score it, and return its streams."""
        engine = ServerEngine(self.server_manager, sampling_params)
        worker = self.worker
        # The whole item is in the row, since verl passes only texts and numbers on.
        item = decode_item(str(extra_info["item"]).encode())
        task = extra_info.get("task")
        wanted = Wanted(
            item=item,
            task=item if task is None else json.loads(task),
            place=int(extra_info["index"]),
            attempt=session_id,
            name=f"{uid}_{session_id}",
        )
        try:
            # On the agents' loop: an agent that blocks must not hold up verl's own loop.
            playing = worker.agents.submit(worker.play(engine, wanted))
            return await asyncio.wrap_future(playing)
        except TrainError as error:
            # verl would only log it; the process that started the job looks into this folder.
            note_fault(worker.folder / FAULTS, error)
            raise


class Wanted(NamedTuple):
    """The episode to play."""

    item: TrajectoryItem
    task: object
    place: int
    """Number of the task in its data."""
    attempt: int
    name: str
    """The name of the session; every model call of the episode carries it."""


class ServerEngine:
    """Samples through verl's client of its rollout servers."""

    def __init__(self, manager: Any, sampling: Mapping[str, Any]) -> None:
        """Take the client, and the sampling parameters that verl's configuration sets."""
        self._manager, self._sampling = manager, dict(sampling)

    @property
    def temperature(self) -> float:
        """Temperature of the answers; 0 in a validation."""
        return float(self._sampling.get("temperature", 1.0))

    @property
    def top_p(self) -> float:
        """Share of the probability that answers are drawn from."""
        return float(self._sampling.get("top_p", 1.0))

    async def generate(
        self, session: str, prompt_ids: Sequence[int], *, max_new_tokens: int
    ) -> Generated:
        """Draw one answer; verl sends all prompts of a session to the same server."""
        answer = await self._manager.generate(
            # The same server for all turns, which has the conversation's prefix in its cache.
            request_id=session,
            prompt_ids=list(prompt_ids),
            sampling_params={**self._sampling, "max_tokens": max_new_tokens},
        )
        extra = answer.extra_fields
        return Generated(
            answer.token_ids,
            answer.log_probs or [],
            extra.get("min_global_steps"),
            extra.get("max_global_steps"),
        )


@functools.cache
def _agent_worker(path: str) -> AgentWorker:
    return AgentWorker(Path(path))


def worker_of(path: str, tokenizer: Any) -> AgentWorker:
    """Return this process's worker for a run, which is made for its first episode."""
    worker = _agent_worker(path)
    # verl's, which every loop has; loading another one for each process would take seconds.
    worker.tokenizer = tokenizer
    return worker


class AgentWorker:
    """What the episodes of one process share."""

    def __init__(self, path: Path) -> None:
        """Load the agent and the rewards.

        Raises:
            CallbackError: they cannot be loaded here; the run's folder gets the reason.
        """
        self.folder, self.shipment = path.parent, read_shipment(path)
        self.config = self.shipment.config
        self.tokenizer: Any = None
        try:
            self.agent = load_agent(self.folder, self.shipment.agent)
            self.rewards = load_rewards(self.folder, self.agent)
        except TrainError as error:
            note_fault(self.folder / FAULTS, error)
            raise
        # Two loops, because an agent may block its own one while it waits for an answer.
        self.agents, self.answers = LoopThread("agents"), LoopThread("answers")
        self._room = asyncio.Semaphore(self.config.episode_concurrency)
        self._rating = asyncio.Semaphore(self.config.reward_concurrency)

    async def play(self, engine: ServerEngine, wanted: Wanted) -> list[AgentLoopOutput]:
        """Play and score one episode, on the loop of the agents."""
        model = ServedModel(
            tokenizer=self.tokenizer,
            stop_token_ids=frozenset(self.shipment.stop_token_ids),
            context_length=self.shipment.context_length,
        )
        live = RemotePolicy(
            model,
            engine,
            self.answers,
            name=wanted.name,
            max_new_tokens=self.config.max_response_length,
            temperature=engine.temperature,
            top_p=engine.top_p,
        )
        config, key = self.config, EpisodeAttempt(wanted.place, wanted.attempt, 0)
        try:
            async with self._room:
                episode = await play_one(config, self.agent, live, wanted.task, key)
        finally:
            live.close()
        async with self._rating:
            scores = await rate(config, self.rewards, wanted.item, episode, wanted.place)
        # Adds the rewards that the agent or the environment gave itself.
        scores = together([(episode, scores)]).scores
        return self._outputs(episode, scores, live.versions)

    def _outputs(
        self, episode: Episode, scores: SampleScores, versions: Sequence[int]
    ) -> list[AgentLoopOutput]:
        """Return the rows of an episode, all with the same fields."""
        trained = with_truncation(scores, [episode], self.config.on_truncation).total[0]
        by_name = {name: values[0] for name, values in scores.by_name.items()}
        facts = {
            "trained": trained is not None and bool(episode.streams),
            "failure": describe_failure(episode, self.config) if episode.failed else None,
            "stop_reason": episode.stop_reason,
            "reward": trained,
            "score": scores.total[0],
            "rewards": by_name,
            "faults": scores.faults,
            "turns": len(episode.turns),
            "streams": len(episode.streams),
            "tokens": episode.sampled_tokens,
            "retries": episode.retries,
            "record": episode_output(episode, scores.total[0], by_name),
        }
        self._refuse_uncredited(episode)
        rewards = {f"{PREFIX}{name}": value or 0.0 for name, value in by_name.items()}
        made = functools.partial(
            AgentLoopOutput,
            reward_score=float(trained or 0.0),
            num_turns=len(episode.turns),
            metrics=AgentLoopMetrics(generate_sequences=episode.seconds),
        )
        extra = {
            "reward_extra_info": {**rewards, "reward_faults": float(scores.faults)},
            "turn_scores": [],
            "tool_rewards": [],
            "global_steps": max(versions, default=0),
            "min_global_steps": min(versions, default=0),
            "max_global_steps": max(versions, default=0),
            # As text, which passes through verl's batches unchanged.
            EPISODE: json.dumps(facts, default=str),
        }
        if not facts["trained"]:
            # verl needs a row for each episode, also for one without tokens to train on.
            end = int(self.tokenizer.eos_token_id or 0)
            return [
                made(
                    prompt_ids=[end],
                    response_ids=[end],
                    response_mask=[0],
                    response_logprobs=[0.0],
                    extra_fields=extra,
                )
            ]
        return [
            made(
                prompt_ids=stream.token_ids[: stream.prompt_length],
                response_ids=stream.token_ids[stream.prompt_length :],
                response_mask=[int(trains) for trains in stream.mask[stream.prompt_length :]],
                response_logprobs=stream.logprobs[stream.prompt_length :],
                extra_fields=dict(extra),
            )
            for stream in episode.streams
        ]

    def _refuse_uncredited(self, episode: Episode) -> None:
        """Refuse an episode that verl's estimator would credit otherwise than this package.

        Raises:
            ConfigError: PPO, and the episode has several streams, or rewards before its last turn.
        """
        if not ALGORITHMS[self.config.algorithm].value_head or episode.failed:
            return
        way_out = "use algorithm='grpo', or backend='local'"
        if len(episode.streams) > 1:
            raise ConfigError(
                f"an episode has {len(episode.streams)} token streams, because its agent rewrote "
                "its history or has sub-agents, and verl's PPO would give each of them the whole "
                f"reward; {way_out}"
            )
        early = [turn for turn in episode.step_reward_turns if turn < len(episode.turns) - 1]
        if early:
            raise ConfigError(
                f"an episode has a step reward in turn {early[0]} of {len(episode.turns)}, and "
                f"verl's PPO takes one reward at the end; {way_out}"
            )
