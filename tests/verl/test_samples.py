from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch

from orbiter.train.engine.batch import collate
from orbiter.train.engine.rollout import Rollout
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl.reward import SampleScores
from orbiter.train.verl.samples import GROUPS_KEPT, sample_records


def rollout(prompt: int, text: str, drawn: int = 2) -> Rollout:
    return Rollout(
        token_ids=[prompt, *[7] * drawn],
        mask=[False, *[True] * drawn],
        old_logprob=[0.0] * (1 + drawn),
        prompt_length=1,
        text=text,
        finish_reason="length" if drawn > 2 else "stop",
    )


def test_a_group_is_kept_whole_and_a_skipped_sample_shows_as_skipped() -> None:
    items = [TrajectoryItem("one", "", task_id="q1"), TrajectoryItem("two", "")]
    rollouts = [rollout(1, "a"), rollout(1, "b"), rollout(2, "c"), rollout(2, "d", drawn=3)]
    scores = SampleScores([1.0, None, 0.0, 2.0], {"call": [1.0, None, 0.0, 2.0]}, 1)
    batch = collate([rollouts[0], rollouts[2], rollouts[3]])
    advantage = torch.tensor([0.25, -0.5, 0.5])[:, None] * batch.mask
    first, second = sample_records(items, rollouts, scores, replace(batch, advantage=advantage))
    assert (first["task"], first["prompt"]) == ("q1", "one")
    assert "task" not in second
    assert [o["advantage"] for o in first["outputs"] + second["outputs"]] == [0.25, None, -0.5, 0.5]
    assert first["outputs"][1] == {
        "text": "b",
        "reward": None,
        "rewards": {"call": None},
        "advantage": None,
        "tokens": 2,
        "cut_off": False,
    }
    assert second["outputs"][1]["cut_off"]


def test_of_a_large_step_groups_are_kept_from_all_over_it() -> None:
    items = [TrajectoryItem(str(place), "") for place in range(100)]
    rollouts = [rollout(place, "x") for place in range(100)]
    records = sample_records(items, rollouts, SampleScores([0.0] * 100, {}, 0), None)
    kept = [int(record["prompt"]) for record in records]
    assert len(kept) == GROUPS_KEPT
    assert kept[0] == 0
    assert max(b - a for a, b in pairwise(kept)) <= 4
    assert kept[-1] > 95
    assert records[0]["outputs"][0]["advantage"] is None
