from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.trajectory import (
    DefaultStrategy,
    TrajectoryDataset,
    TrajectoryItem,
    TrajectoryStrategy,
)


class FilteredStrategy(TrajectoryStrategy):
    """The guide's: no super().__init__, no metadata passed on."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def should_capture(self, item: TrajectoryItem) -> bool:
        assert item.reward is not None
        self.seen.append(item.reward)
        return item.reward >= 0.5

    def process(self, item: TrajectoryItem) -> TrajectoryItem:
        assert item.reward is not None
        return TrajectoryItem(
            state=item.state, action=item.action, reward=min(1.0, max(0.0, item.reward))
        )


def step(reward: float | None, number: int = 0, episode: str = "e") -> TrajectoryItem:
    return TrajectoryItem(f"s{number}", f"a{number}", reward, episode_id=episode, step=number)


def test_the_guides_data_set_stands_as_written(tmp_path: Path) -> None:
    dataset = TrajectoryDataset()
    dataset.capture(TrajectoryItem(state="s1", action="a1", reward=0.7))
    dataset.capture(TrajectoryItem(state="s2", action="a2", reward=0.9))
    assert len(dataset) == 2
    assert [item.reward for item in dataset.items] == [0.7, 0.9]
    dataset.export_json(str(tmp_path / "trajectories.json"))
    dataset.export_csv(str(tmp_path / "trajectories.csv"))


def test_it_is_a_sequence() -> None:
    items = [step(float(number), number) for number in range(5)]
    dataset = TrajectoryDataset()
    assert dataset.extend(items) == items
    assert dataset.items == items
    assert (dataset[0], dataset[-1], dataset[1:3]) == (items[0], items[4], items[1:3])
    assert (list(dataset), items[2] in dataset) == (items, True)
    assert dataset.items != items[:4]
    with pytest.raises(IndexError):
        dataset[5]
    with pytest.raises(AttributeError):
        dataset.items = []  # type: ignore[misc, assignment]  # that it fails is the point


def test_the_view_grows_with_the_data_set_and_cannot_change_it() -> None:
    dataset = TrajectoryDataset()
    view = dataset.items
    dataset.capture(step(1.0))
    assert len(view) == 1
    with pytest.raises(TypeError):
        view[0] = step(0.0)  # type: ignore[index]  # that it fails is the point


def test_a_strategy_filters_reshapes_and_keeps_the_identity() -> None:
    dataset = TrajectoryDataset(FilteredStrategy())
    original = replace(step(1.5, 3), metadata={"k": 1}, messages=[{"role": "user"}], agent="x")
    kept = dataset.capture(original)
    assert kept == replace(original, reward=1.0, metadata={})
    assert dataset.capture(step(0.4)) is None
    assert list(dataset) == [kept]


def test_what_belonged_to_a_changed_text_is_not_taken_over() -> None:
    class Shout(TrajectoryStrategy):
        def process(self, item: TrajectoryItem) -> TrajectoryItem:
            return TrajectoryItem(item.state, item.action.upper(), item.reward)

    item = TrajectoryItem(
        "s", "a", 1.0, messages=[{}], tool_calls=[{}], token_ids=[1], logprobs=[-1.0]
    )
    kept = TrajectoryDataset(Shout()).capture(item)
    assert kept == TrajectoryItem("s", "A", 1.0, messages=[{}])


def test_an_unscored_item_waits_unseen_until_its_episode_is_scored() -> None:
    strategy = FilteredStrategy()
    dataset = TrajectoryDataset(strategy)
    for number in range(3):
        assert dataset.capture(step(None, number)) is None
    assert (len(dataset), len(dataset.waiting), strategy.seen) == (0, 3, [])
    kept = dataset.assign_reward("e", 1.0, gamma=0.6)
    assert strategy.seen == pytest.approx([0.36, 0.6, 1.0])
    assert [item.step for item in kept] == [1, 2]
    assert (list(dataset), dataset.waiting) == (kept, [])


def test_a_late_reward_reaches_back_by_step_or_else_by_order() -> None:
    dataset = TrajectoryDataset()
    for item in [step(None, 2), step(0.25, 1), step(None, 0), step(None, 2), step(None, 7, "f")]:
        dataset.capture(item)
    assert [item.reward for item in dataset.assign_reward("e", 8.0, 0.5)] == [8.0, 2.0, 8.0]
    assert [item.reward for item in dataset.episodes()["e"]] == [2.0, 0.25, 8.0, 8.0]
    for action in "ab":
        dataset.capture(TrajectoryItem("s", action, episode_id="g"))
    assert [item.reward for item in dataset.assign_reward("g", 1.0, 0.5)] == [0.5, 1.0]
    assert [item.episode_id for item in dataset.waiting] == ["f"]


def test_an_episode_that_does_not_wait_is_refused_with_the_nearest_name() -> None:
    dataset = TrajectoryDataset()
    dataset.capture(step(None, 0, "episode-1"))
    with pytest.raises(DataError, match=r"'episode1' waits .*did you mean 'episode-1'"):
        dataset.assign_reward("episode1", 1.0)
    with pytest.raises(DataError, match="reward must be finite"):
        dataset.assign_reward("episode-1", float("nan"))
    with pytest.raises(ConfigError, match=r"gamma must lie in \[0, 1\], got 1.5"):
        dataset.assign_reward("episode-1", 1.0, gamma=1.5)
    assert len(dataset.waiting) == 1


def test_a_strategy_that_raises_is_reported_with_the_item_and_loses_nothing() -> None:
    class Moody(TrajectoryStrategy):
        def process(self, item: TrajectoryItem) -> TrajectoryItem:
            if item.step == 2:
                raise KeyError("mood")
            return item

    dataset = TrajectoryDataset(Moody())
    dataset.capture(step(1.0, 1))
    with pytest.raises(
        CallbackError, match=r"Moody.process, given the item with episode_id=e, step=2, state='s2'"
    ) as caught:
        dataset.capture(step(1.0, 2))
    assert isinstance(caught.value.__cause__, KeyError)
    assert [item.step for item in dataset] == [1]
    for number in (1, 2):
        dataset.capture(step(None, number))
    with pytest.raises(CallbackError):
        dataset.assign_reward("e", 1.0)
    assert (len(dataset), len(dataset.waiting)) == (1, 2)


@pytest.mark.parametrize("answer", [None, "item", 3])
def test_an_unusable_answer_of_a_strategy_is_named(answer: object) -> None:
    class Forgetful(TrajectoryStrategy):
        def process(self, item: TrajectoryItem) -> TrajectoryItem:
            return answer  # type: ignore[return-value]  # the mistake under test

    with pytest.raises(CallbackError, match=r"Forgetful.process, .* must return a TrajectoryItem"):
        TrajectoryDataset(Forgetful()).capture(step(1.0))


def test_a_verdict_that_is_none_or_a_coroutine_is_no_verdict() -> None:
    class Silent(TrajectoryStrategy):
        def should_capture(self, item: TrajectoryItem) -> bool:
            return None  # type: ignore[return-value]  # the mistake under test

    with pytest.raises(CallbackError, match=r"Silent.should_capture, .* must return True or False"):
        TrajectoryDataset(Silent()).capture(step(1.0))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match=r"did you forget the \(\)\?"):
        TrajectoryDataset(DefaultStrategy)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigError, match="'disc'"):
        TrajectoryDataset(durability="disc")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(DataError, match=r"capture takes a TrajectoryItem, got \{'state': 's'\}"):
        TrajectoryDataset().capture({"state": "s"})  # type: ignore[arg-type]  # as above


def test_a_strategy_may_capture_into_its_own_data_set() -> None:
    class Doubling(TrajectoryStrategy):
        def process(self, item: TrajectoryItem) -> TrajectoryItem:
            if item.agent is None:
                dataset.capture(replace(item, agent="copy"))
            return item

    dataset = TrajectoryDataset(Doubling())
    dataset.capture(step(1.0))
    assert [item.agent for item in dataset] == ["copy", None]


@pytest.mark.parametrize("on_disk", [False, True])
def test_many_threads_lose_and_mix_nothing(on_disk: bool, tmp_path: Path) -> None:
    path = tmp_path / "j" if on_disk else None
    long = "prefix " * 20
    with TrajectoryDataset(path=path) as dataset:

        def work(worker: int) -> None:
            for number in range(200):
                item = step(None if number % 2 else 1.0, number, f"e{worker}")
                dataset.capture(replace(item, state=long + item.state))
            dataset.assign_reward(f"e{worker}", 1.0)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        episodes = dataset.episodes()
    expected = [long + f"s{number}" for number in range(200)]
    assert {name: [item.state for item in steps] for name, steps in episodes.items()} == {
        f"e{worker}": expected for worker in range(8)
    }
    if path is not None:
        with TrajectoryDataset(path=path) as again:
            assert list(again) == list(dataset)


async def test_many_tasks_lose_nothing() -> None:
    dataset = TrajectoryDataset()

    async def agent(worker: int) -> None:
        for number in range(50):
            await asyncio.sleep(0)
            dataset.capture(step(1.0, number, f"e{worker}"))

    async with asyncio.TaskGroup() as group:
        for worker in range(20):
            group.create_task(agent(worker))
    assert {len(steps) for steps in dataset.episodes().values()} == {50}


def test_the_summary_counts_and_says_how_sure_the_means_are() -> None:
    dataset = TrajectoryDataset()
    for episode in range(4):
        for number in range(3):
            item = step(float(episode % 2), number, f"e{episode}")
            dataset.capture(replace(item, agent="ab"[number % 2], task_id=f"t{episode % 2}"))
    dataset.capture(step(None, 0, "open"))
    summary = dataset.summary()
    assert (summary.count, summary.waiting, summary.episodes) == (12, 1, 4)
    assert summary.reward is not None
    assert (summary.reward.mean, summary.reward.n) == (0.5, 4)
    assert 0 <= summary.reward.low < 0.5 < summary.reward.high <= 1
    assert {name: interval.n for name, interval in summary.by_agent.items()} == {"a": 4, "b": 4}
    assert {name: interval.mean for name, interval in summary.by_task.items()} == {"t0": 0, "t1": 1}
    assert "12 items in 4 episodes, 1 waiting" in str(summary)


def test_the_summary_of_nothing_has_no_mean() -> None:
    summary = TrajectoryDataset().summary()
    assert (summary.count, summary.reward) == (0, None)


def test_its_repr_says_what_is_in_it(tmp_path: Path) -> None:
    with TrajectoryDataset(FilteredStrategy(), tmp_path / "j") as dataset:
        dataset.capture(step(1.0))
        dataset.capture(step(None))
        assert repr(dataset) == (
            f"<TrajectoryDataset: 1 items, 1 waiting for a reward, journal {tmp_path / 'j'}, "
            "strategy FilteredStrategy>"
        )


def test_a_notebook_shows_hostile_text_inert() -> None:
    dataset = TrajectoryDataset()
    dataset.capture(TrajectoryItem("<script>alert(1)</script>", '"><img src=x onerror=y>', 1.0))
    page = dataset._repr_html_()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_waiting_items_stay_out_of_exports_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = TrajectoryDataset()
    dataset.extend([step(1.0), step(None, 1)])
    assert dataset.export_jsonl(tmp_path / "items.jsonl") == 1
    assert "1 items that wait for a reward are not exported" in caplog.text
