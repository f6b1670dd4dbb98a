"""Requirements are parsed strictly, and judged by the whole interval."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.comparison import Requirement, parse_requirement
from orbiter.train.errors import ConfigError
from orbiter.train.evaluation import Interval


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("reward > 0", Requirement("reward", ">", 0.0)),
        ("reward>=-0.02", Requirement("reward", ">=", -0.02)),
        ("  reward/exact   <= +1e-3 ", Requirement("reward/exact", "<=", 1e-3)),
        ("reward/two words < .5", Requirement("reward/two words", "<", 0.5)),
        ("reward/a > b >= 1.", Requirement("reward/a > b", ">=", 1.0)),
    ],
)
def test_a_reward_a_sign_and_a_number(text: str, parsed: Requirement) -> None:
    assert parse_requirement(text, ["exact", "two words", "a > b"]) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", "reward", "reward >", "> 0", "reward = 0", "reward == 0", "reward > zero",
        "reward > nan",
        "reward > inf", "reward > 1_0", "reward > 0 and exact > 0", "0 < reward", "reward > 0;",
        "reward > 0x1", "reward > \u0661", "reward => 0", "reward > 5%",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"requirement"):
        parse_requirement(text, ["exact"])


def test_an_unknown_reward_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"names 'reward/exac'.*did you mean 'reward/exact'"):
        parse_requirement("reward/exac > 0", ["exact"])


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(ConfigError, match="finite number"):
        parse_requirement("reward > 1e999", [])


@pytest.mark.parametrize(
    ("sign", "low", "high", "verdict"),
    [
        (">", 0.1, 0.3, "met"),
        (">", 0.0, 0.3, "undecided"),
        (">=", 0.0, 0.3, "met"),
        (">", -0.3, 0.0, "not met"),
        (">=", -0.3, 0.0, "undecided"),
        ("<", -0.3, -0.1, "met"),
        ("<", 0.0, 0.2, "not met"),
        ("<=", 0.0, 0.2, "undecided"),
        ("<=", -0.2, 0.0, "met"),
    ],
)
def test_the_whole_interval_decides(sign: str, low: float, high: float, verdict: str) -> None:
    assert Requirement("reward", sign, 0.0).verdict(Interval(0.0, low, high, 9)) == verdict


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), st.sampled_from([">", ">="]))
def test_turning_sign_and_interval_around_changes_nothing(
    x: float, y: float, bound: float, sign: str
) -> None:
    low, high = sorted((x, y))
    there = Requirement("reward", sign, bound).verdict(Interval(0.0, low, high, 9))
    turned = Requirement("reward", sign.replace(">", "<"), -bound)
    assert turned.verdict(Interval(0.0, -high, -low, 9)) == there
