"""Augmentation keeps the kind of data, touches what it says, and depends on nothing beside."""

from __future__ import annotations

import random

import pytest

from orbiter.train.errors import ConfigError, DataError
from orbiter.train.synthesis import CurationReport, augment_add_noise, augment_swap_io
from orbiter.train.synthesis.augment.augment import INVERSE_PROMPT
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

STATES = [f"Question {word}: why does the agent wander off, and where to?" for word in "abcdefgh"]
ITEMS = [
    TrajectoryItem(
        state, f"Because of {index}.", index / 8, {"k": index}, task_id=f"t{index}", done=True
    )
    for index, state in enumerate(STATES)
]
ROWS = [{"input": state, "output": "so", "score": 0.5, "extra": [1]} for state in STATES]


def test_only_the_state_changes() -> None:
    noisy = augment_add_noise(ITEMS, noise_level=0.3)
    for before, after in zip(ITEMS, noisy, strict=True):
        assert after.state != before.state
        assert (after.action, after.reward, after.task_id) == (
            before.action,
            before.reward,
            before.task_id,
        )
        assert after.metadata["k"] == before.metadata["k"]


def test_a_noisy_row_names_its_parent_and_its_root() -> None:
    (once,) = augment_add_noise(ITEMS[:1], 0.3)
    (twice,) = augment_add_noise([once], 0.3)
    lineage = twice.metadata["lineage"]
    assert isinstance(lineage, dict)
    assert lineage["op"] == "add_noise"
    assert (lineage["parent"], lineage["root"]) == (once.id, ITEMS[0].id)


def test_mappings_stay_mappings_and_data_sets_data_sets() -> None:
    rows = augment_add_noise(ROWS, 0.3)
    assert all(row["output"] == "so" and row["extra"] == [1] for row in rows)
    dataset = TrajectoryDataset()
    dataset.extend(ITEMS)
    noisy = augment_add_noise(dataset, 0.3)
    assert isinstance(noisy, TrajectoryDataset)
    assert [item.state for item in noisy.items] == [
        item.state for item in augment_add_noise(ITEMS, 0.3)
    ]


def test_the_batch_order_does_not_matter() -> None:
    shuffled = random.Random(0).sample(ITEMS, len(ITEMS))
    noisy = augment_add_noise(ITEMS, 0.2, seed=7)
    again = augment_add_noise(shuffled, 0.2, seed=7)
    assert {item.state for item in noisy} == {item.state for item in again}
    assert augment_add_noise(ITEMS[3:4], 0.2, seed=7)[0] == noisy[3]


def test_the_noise_is_the_same_in_every_release() -> None:
    (row,) = augment_add_noise([{"input": "An agent that wanders learns the town."}], 0.2, seed=3)
    assert row["input"] == "An agent that wdnders lerans the town."


def test_another_seed_and_another_copy_are_other_slips() -> None:
    texts = [item.state for item in augment_add_noise(ITEMS[:1], 0.3, copies=5)]
    texts += [item.state for item in augment_add_noise(ITEMS[:1], 0.3, seed=1)]
    assert len(set(texts)) == 6


def test_copies_stand_beside_one_another() -> None:
    noisy = augment_add_noise(ITEMS, 0.3, copies=3)
    assert [item.task_id for item in noisy] == [item.task_id for item in ITEMS for _ in range(3)]


def test_no_noise_is_the_identity() -> None:
    assert augment_add_noise(ITEMS, 0) == ITEMS
    assert augment_add_noise([], 0.1) == []
    assert augment_add_noise([{"input": ""}], 1.0) == [{"input": ""}]


def test_nothing_handed_in_is_changed() -> None:
    rows = [dict(row) for row in ROWS]
    augment_add_noise(rows, 0.5)
    augment_swap_io(rows)
    assert rows == ROWS


def test_what_cannot_mean_anything_is_refused() -> None:
    with pytest.raises(ConfigError, match="copies"):
        augment_add_noise(ITEMS, copies=0)
    with pytest.raises(ConfigError, match="regular expression"):
        augment_add_noise(ITEMS, protect=["("])
    with pytest.raises(ConfigError, match="list of patterns"):
        augment_add_noise(ITEMS, protect="x")
    with pytest.raises(DataError, match="row 1"):
        augment_add_noise([{"input": "x"}, {"output": "y"}])


def test_swapping_twice_gives_the_same_texts() -> None:
    swapped = augment_swap_io(ITEMS)
    back = augment_swap_io(swapped)
    assert [(item.state, item.action) for item in swapped] == [
        (item.action, item.state) for item in ITEMS
    ]
    assert [(item.state, item.action) for item in back] == [
        (item.state, item.action) for item in ITEMS
    ]


def test_a_swap_has_no_reward() -> None:
    assert all(item.reward is None for item in augment_swap_io(ITEMS))
    assert all(row["score"] is None for row in augment_swap_io(ROWS))


def test_a_row_without_an_action_is_left_out_and_named() -> None:
    report = CurationReport()
    data = [*ITEMS[:2], TrajectoryItem("only a state", " ")]
    assert len(augment_swap_io(data, report=report)) == 2
    assert [(drop.index, drop.reason) for drop in report.dropped] == [(2, "no_action")]


def test_the_inverse_prompt_asks_for_the_question() -> None:
    (item,) = augment_swap_io(ITEMS[:1], mode="inverse_prompt")
    assert item.state == INVERSE_PROMPT.replace("{answer}", ITEMS[0].action)
    assert item.action == ITEMS[0].state
    (own,) = augment_swap_io(
        ITEMS[:1], mode="inverse_prompt", template='{"a": "{answer}"}: what was asked?'
    )
    assert own.state == '{"a": "Because of 0."}: what was asked?'


def test_an_inverse_prompt_needs_one_place_for_the_answer() -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        augment_swap_io(ITEMS, mode="inverse_prompt", template="What was asked?")
    with pytest.raises(ConfigError, match="inverse_prompt"):
        augment_swap_io(ITEMS, template="{answer}")
    with pytest.raises(ConfigError, match="mode"):
        augment_swap_io(ITEMS, mode="sideways")  # type: ignore[arg-type]  # what is refused
