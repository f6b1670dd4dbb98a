"""Rows to imitate and pairs to prefer, from rewards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train import ConfigError, TrajectoryItem
from orbiter.train.formats import to_preference_pairs, to_sft
from orbiter.train.formats.preference import preference_pairs

PROMPT = [{"role": "user", "content": "1+1?"}]


def said(item: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": item}]


def attempts(*rewards: float | None, state: str = "1+1?") -> list[TrajectoryItem]:
    return [TrajectoryItem(state, f"{state} {i}", reward) for i, reward in enumerate(rewards)]


def test_the_best_and_the_worst_answer_to_a_state_are_a_pair() -> None:
    (row,) = to_preference_pairs(attempts(0.5, 1.0, 0.0, None))
    assert row == {
        "prompt": PROMPT,
        "chosen": said("1+1? 1"),
        "rejected": said("1+1? 2"),
        "score_chosen": 1.0,
        "score_rejected": 0.0,
    }


def test_answers_to_different_states_are_no_pair() -> None:
    one, other = attempts(1.0)[0], attempts(0.0, state="2+2?")[0]
    assert to_preference_pairs([one, other]) == []
    tool = [{"type": "function", "function": {"name": "add"}}]
    with_tool = TrajectoryItem("1+1?", "call", 0.0, tools=tool)
    assert to_preference_pairs([one, with_tool]) == []
    chat = TrajectoryItem("other text", "b", 0.0, messages=PROMPT)
    assert len(to_preference_pairs([one, chat])) == 1  # the same chat, told twice


def test_a_pair_differs_by_the_margin_and_never_by_nothing() -> None:
    assert len(to_preference_pairs(attempts(1.0, 0.5), margin=0.5)) == 1
    assert to_preference_pairs(attempts(1.0, 0.5), margin=0.6) == []
    assert to_preference_pairs(attempts(1.0, 1.0)) == []
    same = [TrajectoryItem("s", "a", 1.0), TrajectoryItem("s", "a", 0.0)]
    assert to_preference_pairs(same) == []


@given(
    rewards=st.lists(st.integers(0, 4).map(float), max_size=8),
    margin=st.sampled_from([0.0, 1.0, 2.5]),
    most=st.none() | st.integers(1, 5),
)
def test_the_pairs_are_the_widest_of_all(
    rewards: list[float], margin: float, most: int | None
) -> None:
    items = attempts(*rewards)
    pairs = list(preference_pairs(items, margin=margin, max_per_state=most))
    gaps = [a - b for a in rewards for b in rewards if a - b >= margin and a > b]
    assert [pair.margin for pair in pairs] == sorted(gaps, reverse=True)[:most]
    assert len({(pair.chosen.action, pair.rejected.action) for pair in pairs}) == len(pairs)


def test_the_pairs_of_a_preference_file_come_before_pairs_across_its_rows() -> None:
    stars = [TrajectoryItem("s", action, reward) for action, reward in (
        ("two", 1.0), ("one", 0.0), ("five", 1.0), ("four", 0.0),
    )]  # fmt: skip
    stated = [("two", "one"), ("five", "four")]
    for most in (1, 2):
        pairs = preference_pairs(stars, max_per_state=most)
        assert [(pair.chosen.action, pair.rejected.action) for pair in pairs] == stated[:most]


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="margin must be at least 0, got -1"):
        to_preference_pairs([], margin=-1)
    with pytest.raises(ConfigError, match="max_per_state must be at least 1"):
        to_preference_pairs([], max_per_state=0)
    with pytest.raises(ConfigError, match="turns must be"):
        to_sft([], turns="first")  # type: ignore[arg-type]  # what a user may write


def test_every_good_answer_is_a_row() -> None:
    rows = to_sft(attempts(1.0, 0.2, None), min_reward=0.5)
    assert rows == [{"prompt": PROMPT, "completion": said("1+1? 0"), "reward": 1.0}]
    assert len(to_sft(attempts(1.0, 0.2, None))) == 3
    assert to_sft([TrajectoryItem("a task without an answer", "")]) == []


def test_only_the_last_answer_of_an_episode_is_a_row_where_asked() -> None:
    steps = [
        TrajectoryItem("s", f"turn {step}", 1.0, episode_id="e", step=step) for step in (1, 2, 0)
    ]
    alone = TrajectoryItem("s", "alone", 1.0)
    rows = to_sft([*steps, alone], turns="last")
    assert [row["completion"] for row in rows] == [said("turn 2"), said("alone")]
    assert len(to_sft([*steps, alone])) == 4


def test_a_call_is_an_object_for_the_chat_template() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    (row,) = to_sft([TrajectoryItem("s", "", 1.0, tool_calls=[call])])
    (answer,) = row["completion"]
    assert answer["content"] is None
    assert answer["tool_calls"][0]["function"]["arguments"] == {"a": 1}
