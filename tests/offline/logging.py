"""Logged episodes of the tiny model, made without an agent: two turns each, tokens as sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orbiter.train import TrajectoryItem
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.prompt import render
from orbiter.train.engine.sample import sample
from orbiter.train.seeding import sub_seed

TASKS = ("Sing.", "Count.")
NEXT = "\n<|bos|>user\nMore.<|eos|>\n<|bos|>assistant\n"


def tiny_policy(model: str = "tiny", **settings: Any) -> Policy:  # noqa: ANN401 - make_policy's
    loaded = load_model(model)
    return make_policy(loaded.model, loaded.tokenizer, device="cpu", **settings)


def low_bytes(items: Sequence[TrajectoryItem]) -> float:
    """Return the share of sampled tokens below 128: a reward that the policy can move."""
    token_ids = [token_id for item in items for token_id in item.token_ids or ()]
    return sum(token_id < 128 for token_id in token_ids) / len(token_ids)


def logged(
    policy: Policy,
    *,
    attempts: int = 6,
    tokens: int = 8,
    seed: int = 0,
    reward: Callable[[Sequence[TrajectoryItem]], float] = low_bytes,
) -> list[TrajectoryItem]:
    """Let a policy play every task several times."""
    tail = policy.tokenizer(NEXT, add_special_tokens=False).input_ids
    items: list[TrajectoryItem] = []
    for task in TASKS:
        for attempt in range(attempts):
            prompt = render(policy.tokenizer, task)
            steps: list[TrajectoryItem] = []
            for step in range(2):
                key = sub_seed(seed, task, attempt, step)
                (rollout,) = sample(policy, [prompt], max_new_tokens=tokens, seed=key)
                first = rollout.prompt_length
                steps.append(
                    TrajectoryItem(
                        task,
                        rollout.text,
                        task_id=task,
                        episode_id=f"{task}{attempt}",
                        step=step,
                        prompt_token_ids=prompt,
                        token_ids=rollout.token_ids[first:],
                        logprobs=[min(0.0, p) for p in rollout.old_logprob[first:]],
                    )
                )
                prompt = rollout.token_ids + tail
            value = reward(steps)
            items += [TrajectoryItem(**{**as_fields(item), "reward": value}) for item in steps]
    return items


def as_fields(item: TrajectoryItem) -> dict[str, Any]:
    return {name: value for name, value in item.to_dict().items() if value is not None}
