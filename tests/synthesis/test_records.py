"""Whatever kind of data goes in comes out, and no row is changed on the way."""

from collections.abc import Mapping

import pytest

from orbiter.train.errors import DataError
from orbiter.train.synthesis.records import (
    Data,
    Records,
    action_of,
    derive,
    id_of,
    lineage_of,
    score_of,
    state_of,
    value_of,
)
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

ITEMS = [TrajectoryItem("s1", "a1", 0.5, {"topic": "x"}), TrajectoryItem("s2", "a2")]
SAR_ROWS = [
    {"state": "s1", "action": "a1", "reward": 0.5, "metadata": {"topic": "x"}},
    {"state": "s2", "action": "a2"},
]
IO_ROWS = [
    {"input": "s1", "output": "a1", "score": 0.5, "metadata": {"topic": "x"}},
    {"input": "s2", "output": "a2", "score": None},
]


def dataset() -> TrajectoryDataset:
    data = TrajectoryDataset()
    data.extend(ITEMS)
    return data


@pytest.mark.parametrize("data", [dataset(), ITEMS, SAR_ROWS, IO_ROWS, tuple(ITEMS)])
def test_every_kind_reads_alike_and_comes_back_as_itself(data: Data) -> None:
    records = Records.of(data)
    assert records.states() == ["s1", "s2"]
    assert records.actions() == ["a1", "a2"]
    assert records.scores() == [0.5, None]
    assert [value_of(row, "topic") for row in records.rows] == ["x", None]
    assert [value_of(row, "input") for row in records.rows] == ["s1", "s2"]
    assert [value_of(row, "reward") for row in records.rows] == [0.5, None]
    last = records.take([1])
    assert type(last) is type(data)
    assert list(last) == list(data)[1:]


def test_a_data_set_comes_back_as_a_new_one() -> None:
    data = dataset()
    records = Records.of(data)
    data.capture(TrajectoryItem("s3", "a3", 1.0))
    assert len(records) == 2
    fresh = records.take([0, 1])
    assert (len(fresh), len(fresh.waiting)) == (1, 1)
    assert len(data) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"state": "s"}, {"prompt": "p"}], r"row 1: .*'state'.*'input'.*\['prompt'\]"),
        ([{"state": 5}], "row 0: 'state' must be text, got int 5"),
        ([{"input": "s", "output": None}], "row 0: 'output' must be text, got NoneType"),
        ([{"input": "s", "score": "0.8"}], "row 0: 'score' must be a number or None, got '0.8'"),
        ([{"input": "s", "score": True}], "row 0: 'score' must be a number"),
        (["text"], "row 0 must be a TrajectoryItem or a mapping, got str"),
        ("text", "data must be a TrajectoryDataset, a list"),
    ],
)
def test_a_row_of_another_shape_is_named(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Records.of(rows)


def test_a_score_is_found_under_either_name() -> None:
    assert score_of({"input": "s", "reward": 1}) == 1.0
    assert score_of({"state": "s", "score": 2}) == 2.0
    assert score_of({"state": "s", "reward": 3, "score": 2}) == 3.0


@pytest.mark.parametrize("row", [ITEMS[0], SAR_ROWS[0], IO_ROWS[0]])
def test_a_derived_row_names_its_ancestors(row: TrajectoryItem | Mapping[str, object]) -> None:
    child = derive(row, {"state": "t", "reward": None}, op="noise", seed=7)
    grandchild = derive(child, {"action": "b"}, op="swap", seed=8)
    assert type(child) is type(row)
    assert (state_of(child), action_of(child), score_of(child)) == ("t", "a1", None)
    assert (state_of(row), score_of(row)) == ("s1", 0.5)
    root = id_of(row)
    assert lineage_of(child) == {"parent": root, "root": root, "op": "noise", "seed": 7}
    assert lineage_of(grandchild) == {"parent": id_of(child), "root": root, "op": "swap", "seed": 8}
    assert value_of(grandchild, "topic") == "x"


def test_what_was_recorded_for_the_old_text_does_not_outlive_it() -> None:
    item = TrajectoryItem(
        "s", "a", token_ids=[1], prompt_token_ids=[2], logprobs=[-1.0], task_id="t"
    )
    other_state = derive(item, {"state": "t"}, op="noise", seed=0)
    other_action = derive(item, {"action": "b"}, op="edit", seed=0)
    assert isinstance(other_state, TrajectoryItem)
    assert isinstance(other_action, TrajectoryItem)
    assert (other_state.prompt_token_ids, other_state.logprobs) == (None, None)
    assert list(other_state.token_ids or ()) == [1]
    assert (other_action.token_ids, other_action.logprobs) == (None, None)
    assert other_action.task_id == "t"
    row = derive({"state": "s", "logprobs": [1], "task_id": "t"}, {"state": "u"}, op="x", seed=0)
    assert isinstance(row, Mapping)
    assert row.keys() == {"state", "metadata"}


def test_an_id_is_the_contents_own() -> None:
    assert id_of({"state": "s", "action": "a"}) == id_of({"action": "a", "state": "s"})
    assert id_of({"state": "s", "action": "a"}) != id_of({"state": "s", "action": "b"})


def test_a_derived_row_takes_no_identity_from_its_parent() -> None:
    metadata = {"response_id": "r1", "evaluations": [1], "topic": "birds"}
    parent = TrajectoryItem(
        "s", "a", 1.0, metadata, task_id="t", episode_id="e", step=3, done=True, timestamp=1.0
    )
    new_task = derive(parent, {"state": "x", "reward": None}, op="evolve", seed=0)
    assert isinstance(new_task, TrajectoryItem)
    assert set(new_task.metadata) == {"topic", "lineage"}
    assert (new_task.task_id, new_task.episode_id, new_task.step) == (None, None, None)
    assert (new_task.done, new_task.timestamp) == (None, None)
    answered = derive(parent, {"action": "b"}, op="respond", seed=0)
    assert isinstance(answered, TrajectoryItem)
    assert (answered.task_id, answered.episode_id) == ("t", None)
    mapping = derive(parent.to_dict(), {"state": "x"}, op="evolve", seed=0)
    assert isinstance(mapping, dict)
    assert not {"task_id", "episode_id", "step", "done", "timestamp"} & mapping.keys()
