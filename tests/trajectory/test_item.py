from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from orbiter.train.errors import DataError, TrainError
from orbiter.train.trajectory import TrajectoryItem
from tests.children import run_child
from tests.trajectory.generated import items


def test_the_guides_item_stands_as_written() -> None:
    item = TrajectoryItem(
        state="The user asked about Python decorators",
        action="respond(explanation='Decorators are...')",
        reward=0.9,
        metadata={"agent": "assistant", "step": 3},
    )
    assert (item.reward, item.metadata["step"]) == (0.9, 3)


def test_an_item_is_frozen_comparable_hashable_and_picklable() -> None:
    item = TrajectoryItem("s", "a", 0.5, {"k": [1]}, messages=[{"role": "user"}])
    with pytest.raises(FrozenInstanceError):
        item.reward = 1.0  # type: ignore[misc]  # that it fails is the point
    assert pickle.loads(pickle.dumps(item)) == item
    assert replace(item, reward=1.0) != item
    assert replace(item, reward=1.0).messages == item.messages
    assert len({item, replace(item), replace(item, reward=1.0)}) == 2


def test_empty_text_is_legal_and_the_reward_may_be_unknown() -> None:
    assert TrajectoryItem("", "").reward is None


@pytest.mark.parametrize(
    ("given_reward", "kept"),
    [(1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (np.int64(2), 2.0), (Fraction(1, 4), 0.25)],
)
def test_every_real_number_is_a_reward(given_reward: float, kept: float) -> None:
    reward = TrajectoryItem("s", "a", given_reward).reward
    assert (type(reward), reward) == (float, kept)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (math.nan, "reward must be finite, got nan"),
        (math.inf, "reward must be finite, got inf"),
        (-math.inf, "reward must be finite, got -inf"),
        (np.float64("nan"), "reward must be finite"),
        (10**400, "reward must be finite"),
        (2**53 + 1, "reward is 9007199254740993, which a float would round"),
        ("0.8", "reward must be a number, got str '0.8'"),
        ([1.0], "reward must be a number, got list"),
    ],
)
def test_a_reward_that_is_no_finite_number_is_refused(bad: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TrajectoryItem("s", "a", bad)  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": 3}, "state must be a str, got int 3"),
        ({"action": None}, "action must be a str, got NoneType"),
        ({"state": "x\ud83d"}, "state has half a surrogate pair at character 1"),
        ({"metadata": None}, "metadata must be a dict, got NoneType"),
        ({"metadata": {"a": {"b": [1, math.nan]}}}, r"metadata\['a'\]\['b'\]\[1\] must be finite"),
        ({"metadata": {"a": object()}}, r"metadata\['a'\] must be a value that JSON can represent"),
        ({"metadata": {"a": {1, 2}}}, r"metadata\['a'\] must be a value that JSON can represent"),
        ({"metadata": {1: "a"}}, "a key of metadata must be a str, got int 1"),
        ({"metadata": {"é\ud800": 1}}, "a key of metadata has half a surrogate pair"),
        ({"task_id": 7}, "task_id must be a str, got int 7"),
        ({"step": "3"}, "step must be an int, got str '3'"),
        ({"step": True}, "step must be an int, got bool True"),
        ({"done": 1}, "done must be True or False, got int 1"),
        ({"timestamp": math.inf}, "timestamp must be finite"),
        ({"messages": {"role": "user"}}, "messages must be a list, got dict"),
        ({"messages": [{}, "hi"]}, r"messages\[1\] must be a dict, got str 'hi'"),
        ({"token_ids": [1, 2.0]}, r"token_ids\[1\] must be an int, got float 2.0"),
        ({"token_ids": [1], "logprobs": [math.nan]}, r"logprobs\[0\] must be finite"),
        ({"token_ids": [1], "logprobs": [-1.0, 0.0]}, "one number for each of token_ids, got 2"),
    ],
)
def test_a_field_that_no_file_could_hold_is_refused_by_name(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        TrajectoryItem(**{"state": "s", "action": "a", **fields})
    assert isinstance(caught.value, TrainError)
    assert isinstance(caught.value, ValueError)


def test_metadata_that_holds_itself_is_refused() -> None:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(DataError, match="nested too deep, or contains itself"):
        TrajectoryItem("s", "a", metadata=loop)


def test_kin_of_the_json_types_may_stand_in_metadata() -> None:
    kin: Mapping[str, object] = MappingProxyType(
        {"text": np.str_("é"), "int": np.int64(1), "float": np.float64(0.5), "pair": (1, 2)}
    )
    plain = {"text": "é", "int": 1, "float": 0.5, "pair": [1, 2]}
    assert TrajectoryItem("s", "a", metadata=kin).id == TrajectoryItem("s", "a", metadata=plain).id


def test_a_conversation_that_goes_on_does_not_change_the_recorded_step() -> None:
    conversation = [{"role": "user", "content": "hi"}]
    item = TrajectoryItem("hi", "hello", messages=conversation)
    conversation.append({"role": "assistant", "content": "hello"})
    assert item.messages == [{"role": "user", "content": "hi"}]


def test_the_id_follows_the_content_and_not_the_order_of_keys() -> None:
    item = TrajectoryItem("s", "a", 1.0, {"x": 1, "y": 2})
    assert item.id == TrajectoryItem("s", "a", 1, {"y": 2, "x": 1}).id
    changed = [
        replace(item, state="S"),
        replace(item, action="A"),
        replace(item, reward=None),
        replace(item, metadata={}),
        replace(item, agent="b"),
        replace(item, task_id="b"),
    ]
    assert len({item.id, *(other.id for other in changed)}) == 7


def test_the_id_is_the_same_in_another_process() -> None:
    code = (
        "from orbiter.train.trajectory import TrajectoryItem as T;"
        "import sys; sys.stdout.write(T('s', 'é', 0.1, {'b': 1, 'a': [None]}, step=1).id)"
    )
    said = run_child([sys.executable, "-c", code], check=True)
    assert said.stdout == TrajectoryItem("s", "é", 0.1, {"a": [None], "b": 1}, step=1).id


@given(items(scored=False))
def test_an_item_survives_pickling_and_rebuilding(item: TrajectoryItem) -> None:
    assert pickle.loads(pickle.dumps(item)) == item
    assert TrajectoryItem(**item.to_dict()) == item  # type: ignore[arg-type]  # its own fields
    assert TrajectoryItem(**item.to_dict()).id == item.id  # type: ignore[arg-type]  # as above
