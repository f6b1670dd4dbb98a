"""Select the samples of a step that are kept in the run's folder: whole groups, as JSON records.

    {"step": 3, "task": "q7", "prompt": ..., "outputs": [{"text": ..., "reward": 1.0,
     "rewards": {"call": 1.0}, "advantage": 0.7, "tokens": 21, "cut_off": false}, ...]}

A skipped sample has the reward and the advantage null. An episode also has its `stop_reason`, its
`error`, and, in `turns`, the new prompt part and the answer of each turn. Not stored: token ids and
logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orbiter.train.agents.episode import Episode
from orbiter.train.engine.batch import Batch
from orbiter.train.engine.rollout import Rollout
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.reward import SampleScores

if TYPE_CHECKING:
    from orbiter.train.serve.session import Turn

GROUPS_KEPT = 32
"""Largest number of groups kept per step; they are spread evenly over the step."""


def sample_records(
    items: Sequence[TrajectoryItem],
    rollouts: Sequence[Rollout],
    scores: SampleScores,
    batch: Batch | None,
) -> list[dict[str, Any]]:
    """Return a record for each kept group; `batch` holds the samples that were not skipped."""
    size = len(rollouts) // len(items)
    advantages = _advantages(scores, batch)
    kept = min(len(items), GROUPS_KEPT)
    return [
        _group(items[task], rollouts, scores, advantages, range(task * size, (task + 1) * size))
        for task in (i * len(items) // kept for i in range(kept))
    ]


def _group(
    item: TrajectoryItem,
    rollouts: Sequence[Rollout],
    scores: SampleScores,
    advantages: Sequence[float | None],
    rows: range,
) -> dict[str, Any]:
    group: dict[str, Any] = {} if item.task_id is None else {"task": item.task_id}
    group["prompt"] = item.state
    if item.messages:
        group["messages"] = item.messages
    group["outputs"] = [
        {
            "text": rollouts[row].text,
            "reward": scores.total[row],
            "rewards": {name: answers[row] for name, answers in scores.by_name.items()},
            "advantage": advantages[row],
            "tokens": sum(rollouts[row].mask),
            "cut_off": rollouts[row].finish_reason == "length",
        }
        for row in rows
    ]
    return group


def _advantages(scores: SampleScores, batch: Batch | None) -> list[float | None]:
    """Return each sample's advantage: the mean over its tokens, which in GRPO are all equal."""
    if batch is None or batch.advantage is None:
        return [None] * len(scores.total)
    mask = batch.mask
    mean = ((batch.advantage * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).tolist()
    known = iter(mean)
    return [None if total is None else round(next(known), 6) for total in scores.total]


def episode_records(
    items: Sequence[TrajectoryItem],
    episodes: Sequence[Episode],
    scores: SampleScores,
    advantages: Sequence[float | None],
    by_turn: Sequence[Sequence[float] | None],
) -> list[dict[str, Any]]:
    """Return a record for each kept group of episodes; every output also has its "turns"."""
    size = len(episodes) // len(items)
    kept = min(len(items), GROUPS_KEPT)
    records: list[dict[str, Any]] = []
    for task in (i * len(items) // kept for i in range(kept)):
        item = items[task]
        group: dict[str, Any] = {} if item.task_id is None else {"task": item.task_id}
        group["prompt"] = item.state
        group["outputs"] = [
            episode_output(
                episodes[row],
                scores.total[row],
                {name: answers[row] for name, answers in scores.by_name.items()},
                advantage=advantages[row],
                by_turn=by_turn[row],
            )
            for row in range(task * size, (task + 1) * size)
        ]
        records.append(group)
    return records


def episode_output(
    episode: Episode,
    total: float | None,
    by_name: Mapping[str, float | None],
    *,
    advantage: float | None = None,
    by_turn: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the record of one episode in its group."""
    return {
        "text": episode.output,
        "reward": total,
        "rewards": dict(by_name),
        "advantage": advantage,
        "tokens": episode.sampled_tokens,
        "cut_off": episode.truncated,
        "stop_reason": episode.stop_reason,
        "error": episode.error,
        "turns": _turns(episode, by_turn),
    }


def _turns(episode: Episode, advantages: Sequence[float] | None) -> list[dict[str, Any]]:
    """Return the turns, each with its step rewards and its advantage, if any."""
    records = [_turn(episode, turn) for turn in episode.turns]
    for turn, given in zip(episode.step_reward_turns, episode.step_rewards, strict=True):
        if turn < len(records):
            records[turn]["reward"] = records[turn].get("reward", 0.0) + given
    for record, advantage in zip(records, advantages or (), strict=False):
        record["advantage"] = advantage
    return records


def _turn(episode: Episode, turn: Turn) -> dict[str, Any]:
    """Return the new part of a turn's prompt, and the policy's answer."""
    known = 0
    if turn.continues is not None:
        known = len(episode.turns[turn.continues].messages) + 1  # with the answer to them
    return {
        "asked": turn.messages[known:],
        "answer": turn.reply,
        "tokens": len(turn.token_ids),
        "finish_reason": turn.finish_reason,
    }
