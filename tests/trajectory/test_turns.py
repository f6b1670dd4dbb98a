from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from orbiter.train.trajectory.item import values_of
from orbiter.train.trajectory.turns import Shortened, Stored, packed, restore, shorten
from tests.trajectory.generated import items

LONG = "x" * 100


def turn(state: str, number: int = 0) -> TrajectoryItem:
    return TrajectoryItem(state, "a", 1.0, episode_id="e", step=number)


def test_a_turn_holds_only_what_its_predecessor_does_not() -> None:
    first, second = turn(LONG), turn(LONG + "more", 1)
    stored = shorten(second, packed(first))
    assert isinstance(stored, Shortened)
    assert stored.tail[0] == "more"
    assert restore(stored) == second


def test_a_changed_ending_still_shares_the_beginning() -> None:
    stored = shorten(turn(LONG + "abc]"), packed(turn(LONG + "abd]")))
    assert isinstance(stored, Shortened)
    assert stored.tail[0] == "c]"


def test_a_chain_is_followed_through_shorter_and_longer_turns() -> None:
    states = [
        LONG + "a" * 50,
        LONG + "a" * 20,
        LONG + "a" * 20 + "b",
        LONG,
        LONG + "a",
        "new",
        LONG,
    ]
    previous: Stored = packed(turn(states[0]))
    for state in states[1:]:
        previous = shorten(turn(state), previous)
        assert restore(previous).state == state


@pytest.mark.parametrize(
    ("before", "now"), [({"n": 1}, {"n": True}), ({"n": 1}, {"n": 1.0}), ({"n": 0.0}, {"n": -0.0})]
)
def test_values_that_only_python_calls_equal_are_not_shared(
    before: dict[str, object], now: dict[str, object]
) -> None:
    first = replace(turn(LONG), messages=[before])
    second = replace(turn(LONG), messages=[now])
    messages = restore(shorten(second, packed(first))).messages
    assert messages is not None
    assert repr(messages[0]["n"]) == repr(now["n"])


@settings(max_examples=100)
@given(st.lists(items(), min_size=2, max_size=6), st.data())
def test_every_chain_comes_back_as_it_went_in(
    captured: list[TrajectoryItem], data: st.DataObject
) -> None:
    episode: list[TrajectoryItem] = []
    for item in captured:
        base = data.draw(st.sampled_from([item, *episode]))
        episode.append(
            replace(
                item,
                state=base.state + LONG[: data.draw(st.integers(0, 100))] + item.state,
                messages=[*(base.messages or ()), *(item.messages or ())],
                prompt_token_ids=[*(base.prompt_token_ids or ()), 1],
                episode_id="e",
                agent=None,
            )
        )
    dataset = TrajectoryDataset()
    dataset.extend(episode)
    assert list(map(repr, map(values_of, dataset))) == list(map(repr, map(values_of, episode)))
