"""Two models on the same items: differences, looks, slices, requirements, cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.comparison import Comparison, Plan, compare
from orbiter.train.errors import CallbackError, ConfigError, DataError, StorageError
from orbiter.train.llm import Answer, Message
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig
from tests.preference.saved import saved_reward_model


class Scripted:
    """A model that answers right on the items that a rule names."""

    def __init__(self, name: str, right: Callable[[int], bool]) -> None:
        self.name, self.right = name, right
        self.asked: list[int] = []

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        number = int(str(messages[-1]["content"]).split()[-1])
        self.asked.append(number)
        text = "yes" if self.right(number) else "no"
        return Answer(text, prompt_tokens=10, completion_tokens=2, cost=0.25)


def always(_: int) -> bool:
    return True


def right(output: str) -> float:
    return float(output == "yes")


def length(output: str) -> float:
    return float(len(output))


REWARDS = [RewardSpec("right", fn=right), RewardSpec("length", 0.0, length)]


def items_of(count: int) -> list[TrajectoryItem]:
    return [
        TrajectoryItem(f"question {n}", "yes", metadata={"task_type": "odd" if n % 2 else "even"})
        for n in range(count)
    ]


def run(
    a: Callable[[int], bool],
    b: Callable[[int], bool],
    count: int = 100,
    **further: Any,  # noqa: ANN401 - as compare
) -> Comparison:
    models = (Scripted("old", a), Scripted("new", b))
    return asyncio.run(compare(*models, items_of(count), REWARDS, **further))


def test_a_clear_difference_stops_early_and_is_b_minus_a() -> None:
    found = run(lambda n: n % 10 == 0, lambda n: n % 10 != 0)
    assert found.stopped_early
    assert found.difference.mean == pytest.approx(0.8, abs=0.15)
    assert found.difference.low > 0
    assert found.difference == found.differences["reward/right"]
    assert found.differences["reward/length"].mean == pytest.approx(0.8, abs=0.15)
    assert found.verdict is None


def test_equal_models_use_all_items_and_decide_nothing() -> None:
    found = run(lambda n: n % 3 > 0, lambda n: n % 3 < 2, require=["reward > 0"])
    assert not found.stopped_early
    assert found.items == 100
    assert found.verdict == "undecided"


def test_models_that_agree_on_all_items_so_far_are_not_known_to_be_equal() -> None:
    """Also where rewards are graded, so that their differences show no spread at all."""

    def graded(output: str, item: TrajectoryItem) -> float:
        return float(item.state.split()[-1]) % 3

    same = Scripted("same", always)
    compared = asyncio.run(
        compare(
            same, same, items_of(100), [RewardSpec("graded", fn=graded)],
            require=["reward >= 0", "reward >= -0.2"],
        )
    )  # fmt: skip
    assert compared.difference.low < 0 < compared.difference.high
    assert [checked.verdict for checked in compared.requirements] == ["undecided", "met"]
    assert not compared.stopped_early


def test_a_worse_model_is_refused_as_soon_as_it_is_known() -> None:
    found = run(always, lambda n: n % 2 == 0, require=["reward > 0"])
    assert found.verdict == "not met"
    assert found.stopped_early


def test_all_requirements_must_be_met() -> None:
    found = run(
        lambda n: n % 10 == 0, lambda n: n % 10 != 0, require=["reward > 0", "reward/length < 0"]
    )
    assert [str(checked.verdict) for checked in found.requirements] == ["met", "not met"]
    assert found.verdict == "not met"


def test_no_worse_by_more_than_a_margin_is_a_requirement_too() -> None:
    found = run(lambda n: n != 3, lambda n: n != 4, require=["reward >= -0.1"])
    assert found.verdict == "met"


def test_the_plan_is_known_before_the_first_question() -> None:
    old, new = Scripted("old", always), Scripted("new", always)
    plans: list[tuple[Plan, int]] = []
    asyncio.run(
        compare(
            old, new, items_of(60), REWARDS, on_plan=lambda p: plans.append((p, len(old.asked)))
        )
    )
    [(plan, asked)] = plans
    assert asked == 0
    assert plan.looks.sizes == (20, 40, 60)
    assert plan.detectable[0.1] < plan.detectable[0.5]
    assert "60 items, looks after 20, 40, 60" in plan.lines[0]


def test_both_answer_the_same_items_in_an_order_that_the_seed_decides() -> None:
    orders = []
    for seed in (0, 0, 1):
        old, new = Scripted("old", always), Scripted("new", always)
        asyncio.run(compare(old, new, items_of(60), REWARDS, seed=seed, require=["reward > 0"]))
        assert sorted(old.asked) == sorted(new.asked) == list(range(60))
        orders.append([sorted(old.asked[:20]), sorted(new.asked[:20])])
    assert orders[0] == orders[1]
    assert orders[0][0] == orders[0][1]  # the first look shows the same items to both
    assert orders[0] != orders[2]


def test_a_slice_that_got_worse_is_found_though_the_total_got_better() -> None:
    found = run(lambda n: n % 2 == 1, lambda n: n % 2 == 0 or n % 10 == 1, looks=1)
    by_value = {part.value: part for part in found.slices}
    assert found.plan.by == "task_type"
    assert by_value["odd"].regressed
    assert not by_value["even"].regressed
    assert [part.value for part in found.regressions] == ["odd"]


def test_without_regressions_is_a_requirement_that_needs_all_items() -> None:
    better = run(lambda n: n % 4 == 0, always, allow_regressions=False)
    assert better.verdict == "met"
    assert better.items == 100
    worse = run(lambda n: n % 2 == 1, lambda n: n % 2 == 0, allow_regressions=False)
    assert worse.verdict == "not met"


def test_slices_are_corrected_for_their_number() -> None:
    coarse = run(lambda n: n % 3 > 0, lambda n: n % 3 < 2, looks=1)
    items = [
        TrajectoryItem(item.state, "yes", metadata={"kind": str(n % 10)})
        for n, item in enumerate(items_of(100))
    ]
    models = (Scripted("old", lambda n: n % 3 > 0), Scripted("new", lambda n: n % 3 < 2))
    fine = asyncio.run(compare(*models, items, REWARDS, by="kind", looks=1))
    assert len(fine.slices) == 10
    assert len(coarse.slices) == 2
    looks = fine.plan.looks
    assert looks.corrected(10)[-1] == pytest.approx(0.0025, rel=1e-3)


def test_an_unknown_field_is_named_with_those_that_there_are() -> None:
    with pytest.raises(DataError, match=r"no task has this field.*task_type"):
        run(always, always, by="tasktype")


def test_a_field_of_many_values_is_no_type_of_task() -> None:
    items = [TrajectoryItem(f"question {n}", "yes", task_id=str(n)) for n in range(150)]
    with pytest.raises(DataError, match="150 different values"):
        asyncio.run(compare(Scripted("a", bool), Scripted("b", bool), items, REWARDS, by="task_id"))


def test_regressions_need_slices() -> None:
    items = [TrajectoryItem(f"question {n}", "yes") for n in range(30)]
    with pytest.raises(ConfigError, match="needs slices"):
        asyncio.run(
            compare(
                Scripted("a", bool), Scripted("b", bool), items, REWARDS, allow_regressions=False
            )
        )


def test_the_cost_of_both_is_counted() -> None:
    found = run(always, always, count=30, require=["reward > 0"])
    for side in (found.a, found.b):
        assert side.cost.endpoint_calls == 30
        assert side.cost.endpoint_tokens == 360
        assert side.cost.money == pytest.approx(7.5)
        assert side.cost.seconds > 0


def test_a_model_of_this_machine_is_measured_too() -> None:
    config = VeRLConfig(max_response_length=4, device="cpu", progress=False)
    found = asyncio.run(
        compare(
            "tiny", "tiny", ["a", "bb", "ccc"] * 10, [RewardSpec("length", fn=length)],
            config=config, looks=2, require=["reward >= 0"],
        )
    )  # fmt: skip
    assert found.difference.mean == 0
    assert found.a.name == "A tiny"
    assert found.a.cost.tokens == found.b.cost.tokens > 0
    assert found.a.cost.money == 0


def test_samples_are_averaged_before_items_are_compared() -> None:
    found = run(always, always, count=25, samples=3)
    assert found.difference.n == 25
    assert found.a.cost.endpoint_calls == 75


def test_b_is_not_shipped_while_it_fails_where_a_does_not() -> None:
    def breaks(output: str, item: TrajectoryItem) -> float:
        if output == "no":
            raise ValueError("no reward for this")
        return float(len(item.state) % 2)

    models = (Scripted("old", always), Scripted("new", lambda n: n % 20 != 0))
    found = asyncio.run(
        compare(
            *models, items_of(60), [RewardSpec("breaks", fn=breaks)],
            config=VeRLConfig(on_reward_error="skip"), require=["reward >= -0.5"],
        )
    )  # fmt: skip
    assert (found.a.failed, found.b.failed) == (0, 3)
    assert found.verdict == "undecided"
    assert "B failed on more items" in found.requirements[0].why


def test_failures_of_a_reward_or_a_model_stop_the_comparison() -> None:
    async def broken(messages: Sequence[Message], /) -> str:
        raise OSError("unplugged")

    with pytest.raises(CallbackError, match="unplugged"):
        asyncio.run(compare(Scripted("old", bool), broken, items_of(20), REWARDS))


async def unplugged(messages: Sequence[Message], /) -> str:
    raise OSError("unplugged")


@pytest.mark.parametrize("name", ["no-such-folder/model", "./no-such-folder", unplugged])
@pytest.mark.parametrize("looks", [1, 3])
def test_a_model_that_cannot_answer_is_found_before_the_other_one_works(
    name: object, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    old = Scripted("old", always)
    with pytest.raises((StorageError, CallbackError)):
        asyncio.run(compare(old, name, items_of(60), REWARDS, looks=looks))
    assert len(old.asked) <= 1, "one question shows that an endpoint answers"


def test_a_damaged_model_is_found_before_the_other_one_works(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    old = Scripted("old", always)
    with pytest.raises(StorageError, match="model"):
        asyncio.run(compare(old, tmp_path, items_of(60), REWARDS))
    assert len(old.asked) <= 1


async def test_a_reward_model_is_found_before_the_other_one_works(tmp_path: Path) -> None:
    old, folder = Scripted("old", always), await saved_reward_model(tmp_path / "liked")
    models: list[tuple[object, object]] = [(old, folder), (folder, old)]
    for a, b in models:
        with pytest.raises(StorageError, match="holds a reward model, which scores answers"):
            await compare(a, b, items_of(60), REWARDS)
    assert len(old.asked) <= 1


def test_the_first_question_is_not_asked_twice() -> None:
    found = run(always, always, count=25, samples=3)
    assert found.a.cost.endpoint_calls == 75
    old = Scripted("old", always)
    asyncio.run(compare(old, Scripted("new", always), items_of(30), REWARDS, looks=1))
    assert sorted(old.asked) == list(range(30))


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"require": "reward > 0"}, "require must be a list"),
        ({"require": ["reward"]}, "must look like"),
        ({"require": ["reward/rihgt > 0"]}, "did you mean 'reward/right'"),
        ({"looks": 0}, "looks must be"),
        ({"samples": -1}, "samples must be"),
        ({"confidence": 1.0}, "confidence must lie"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_asked(
    further: dict[str, Any], message: str
) -> None:
    old = Scripted("old", bool)
    with pytest.raises(ConfigError, match=message):
        asyncio.run(compare(old, old, items_of(30), REWARDS, **further))
    assert old.asked == []


def test_no_items_and_strange_models_are_refused() -> None:
    with pytest.raises(DataError, match="no items"):
        asyncio.run(compare(Scripted("a", bool), Scripted("b", bool), [], REWARDS))
    with pytest.raises(ConfigError, match="A must be a model's name"):
        asyncio.run(compare(3, Scripted("b", bool), items_of(3), REWARDS))
    with pytest.raises(ConfigError, match="cannot play agent="):
        asyncio.run(
            compare(Scripted("a", bool), Path("x"), items_of(3), REWARDS, agent=lambda task: task)
        )


def test_the_result_is_json() -> None:
    import json

    found = run(lambda n: n % 10 == 0, lambda n: n % 10 != 0, require=["reward > 0"])
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["verdict"] == "met"
    assert told["differences"]["reward"]["low"] > 0
    assert told["a"]["cost"]["money"] > 0
    assert [part["value"] for part in told["slices"]] == ["even", "odd"]
