"""The same episodes give the same advantages, masks and losses on verl as on one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from orbiter.train.agents import Episode, run_episode
from orbiter.train.engine.models.tiny import CONTEXT, tiny_tokenizer
from orbiter.train.engine.turn_end import stop_token_ids
from orbiter.train.rl import clipped_surrogate
from orbiter.train.serve.remote import Generated, LoopThread, RemotePolicy, ServedModel
from orbiter.train.verl import VeRLConfig
from orbiter.train.verl.cluster.inside.batches import EpisodeRow, sift
from orbiter.train.verl.cluster.overrides import NEVER
from orbiter.train.verl.episodes import credit_episodes
from orbiter.train.verl.reward import SampleScores

pytestmark = pytest.mark.filterwarnings("default")  # verl's imports warn

NOWHERE = "https://api.example.invalid/v1/chat/completions"
P, G = 2, 4
TOTALS = [0.2, 1.0, 0.0, 0.7, 0.5, None, None, None]
"""Two prompts; of the second, all episodes but one failed."""


class Engine:
    """Answers of various lengths, with made-up log probabilities."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    async def generate(
        self, session: str, prompt_ids: Sequence[int], *, max_new_tokens: int
    ) -> Generated:
        del session, prompt_ids
        ids = [int(i) for i in self.random.integers(97, 120, self.random.integers(1, 9))]
        ids = [*ids, tiny_tokenizer().eos_token_id][:max_new_tokens]
        return Generated(ids, (-self.random.random(len(ids))).tolist())


async def agent(turns: int) -> str:
    """Ask several turns; with more than two, forget the first answer, which begins a stream."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Go"}]
    async with httpx.AsyncClient() as client:
        for turn in range(turns):
            if turn == 2:
                messages[1] = {"role": "assistant", "content": "..."}
            said = await client.post(NOWHERE, json={"model": "m", "messages": messages})
            messages.append(said.json()["choices"][0]["message"])
            messages.append({"role": "user", "content": "And?"})
    return "done"


def played() -> list[Episode]:
    tokenizer = tiny_tokenizer()
    model = ServedModel(
        tokenizer=tokenizer, stop_token_ids=stop_token_ids(tokenizer), context_length=CONTEXT
    )

    async def play(number: int) -> Episode:
        with (
            closing(LoopThread("answers")) as loop,
            closing(
                RemotePolicy(
                    model, Engine(number), loop, name="e", max_new_tokens=12, temperature=1.0
                )
            ) as live,
        ):
            return await run_episode(agent, 1 + number % 4, live, seed=0)

    async def all_of_them() -> list[Episode]:
        return [await play(number) for number in range(P * G)]

    return asyncio.run(all_of_them())


class NoModel:
    """Where the batch is; neither algorithm needs more of a policy."""

    device = torch.device("cpu")


class Padded:
    """The rows of some episodes as verl's trainer sees them, right-padded."""

    def __init__(self, episodes: Sequence[Episode], config: VeRLConfig) -> None:
        rows, self.keys, streams, scores = [], [], [], []
        for number, (episode, total) in enumerate(zip(episodes, TOTALS, strict=True)):
            for index, stream in enumerate(episode.streams if total is not None else ()):
                key = f"p{number // G}_{number % G}_{index}"
                told: dict[str, Any] = {
                    "trained": True,
                    "failure": None,
                    "stop_reason": "done",
                    "reward": total,
                    "rewards": {},
                    "faults": 0,
                    "turns": 1,
                    "streams": len(episode.streams),
                    "tokens": episode.sampled_tokens,
                    "retries": 0,
                    "record": {},
                }
                rows.append(EpisodeRow(key, told))
                self.keys.append(key)
                streams.append(stream)
                scores.append(total)
        sifted = sift(rows, config)
        assert sifted.kept == self.keys
        self.length = [len(s.token_ids) - s.prompt_length for s in streams]
        shape = (len(streams), max(self.length))
        self.mask, self.score, self.weight = (torch.zeros(shape) for _ in range(3))
        for i, (stream, score) in enumerate(zip(streams, scores, strict=True)):
            self.mask[i, : self.length[i]] = torch.tensor(stream.mask[stream.prompt_length :])
            self.score[i, self.length[i] - 1] = score or 0.0
            self.weight[i, : self.length[i]] = sifted.weight[self.keys[i]]


def verls_advantage(rows: Padded, config: VeRLConfig) -> torch.Tensor:
    from verl import DataProto
    from verl.trainer.ppo.core_algos import AdvantageEstimator
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    data = DataProto.from_dict(
        tensors={"token_level_rewards": rows.score, "response_mask": rows.mask},
        non_tensors={"uid": np.array([key.split("_")[0] for key in rows.keys], dtype=object)},
    )
    credited = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=rows.keys,
        adv_estimator=AdvantageEstimator.GRPO,
        norm_adv_by_std_in_grpo=config.scale_rewards and config.algorithm != "rloo",
    )
    advantage: torch.Tensor = credited.batch["advantages"]
    return advantage


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    made = played()
    assert {len(episode.streams) for episode in made} == {1, 2}
    return [
        replace(each, stop_reason="timeout") if total is None else each
        for each, total in zip(made, TOTALS, strict=True)
    ]


@pytest.mark.parametrize("aggregation", ["token", "episode", "constant"])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_advantages_masks_and_losses_are_the_local_backends(
    episodes: list[Episode], algorithm: str, aggregation: str
) -> None:
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    config = VeRLConfig(
        algorithm=algorithm,  # type: ignore[arg-type] # a name
        loss_aggregation=aggregation,  # type: ignore[arg-type]
        batch_size=P,
        group_size=G,
        max_response_length=12,
    )
    policy: Any = NoModel()
    local = credit_episodes(
        policy, config, episodes, SampleScores(list(TOTALS), {}, 0)
    ).credited.batch
    assert local is not None
    assert local.advantage is not None
    rows = Padded(episodes, config)
    theirs = verls_advantage(rows, config) * rows.weight
    ours = torch.zeros_like(theirs)
    kept = [s for e, t in zip(episodes, TOTALS, strict=True) if t is not None for s in e.streams]
    for i, stream in enumerate(kept):
        tokens = slice(stream.prompt_length, len(stream.token_ids))
        ours[i, : rows.length[i]] = local.advantage[i, tokens]
        assert local.mask[i, tokens].tolist() == rows.mask[i, : rows.length[i]].bool().tolist()
    assert ours.abs().sum() > 0
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)

    actor = ActorConfig(
        strategy="fsdp2",
        rollout_n=G,
        use_dynamic_bsz=True,
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=NEVER,
    )
    random = torch.Generator().manual_seed(1)
    old = -torch.rand(rows.mask.shape, generator=random)
    new = old + torch.randn(old.shape, generator=random) * 0.3
    on_verl, here = new.clone().requires_grad_(), new.clone().requires_grad_()
    loss, _ = compute_policy_loss_vanilla(
        old,
        on_verl,
        verls_advantage(rows, config),
        rows.mask,
        loss_agg_mode="token-mean",
        config=actor,
        rollout_is_weights=rows.weight,
    )
    loss.backward()
    ours_loss = clipped_surrogate(
        here, old, ours, rows.mask.bool(), clip_range=0.2, aggregation="token"
    ).loss
    ours_loss.backward()
    assert loss.item() == pytest.approx(ours_loss.item(), rel=1e-5, abs=1e-7)
    assert on_verl.grad is not None
    assert here.grad is not None
    assert torch.allclose(on_verl.grad, here.grad, rtol=1e-5, atol=1e-8)
