from __future__ import annotations

import math
from typing import Any

import pytest

from orbiter.train.verl import VeRLConfig
from orbiter.train.verl.cluster.inside.batches import EpisodeRow, rows_of_an_update, sift


def config(**settings: Any) -> VeRLConfig:  # noqa: ANN401
    return VeRLConfig(batch_size=2, group_size=3, **settings)


def rows(prompt: str, session: int, *, streams: int = 1, **told: Any) -> list[EpisodeRow]:  # noqa: ANN401
    """The rows of one episode, as the worker sends them."""
    known: dict[str, Any] = {
        "trained": True,
        "failure": None,
        "stop_reason": "done",
        "reward": 1.0,
        "score": 1.0,
        "rewards": {"r": 1.0},
        "faults": 0,
        "turns": 2,
        "streams": streams,
        "tokens": 10,
        "retries": 0,
        "record": {"text": f"{prompt}{session}"},
    }
    return [EpisodeRow(f"{prompt}_{session}_{i}", known | told) for i in range(streams)]


FAILED: dict[str, Any] = {
    "trained": False,
    "failure": "task 'x': timeout",
    "stop_reason": "timeout",
    "score": None,
    "rewards": {},
}


def test_failed_episodes_are_taken_out_and_counted() -> None:
    sifted = sift([*rows("a", 0), *rows("a", 1, **FAILED), *rows("a", 2, reward=0.0)], config())
    assert sifted.kept == ["a_0_0", "a_2_0"]
    assert sifted.dropped == ["a_1_0"]
    assert sifted.failures == ["task 'x': timeout"]
    assert sifted.metrics["episode/failed"] == pytest.approx(1 / 3)
    assert sifted.metrics["episode/failed/timeout"] == 1
    assert sifted.metrics["episode/reward"] == 0.5, "not a third: a failure is no reward of 0"
    assert sifted.episodes == 3


def test_a_validation_counts_episodes_that_training_leaves_out_for_their_length() -> None:
    masked: dict[str, Any] = {"trained": False, "reward": None, "score": 0.5}
    given = [*rows("a", 0), *rows("b", 0, **masked), *rows("c", 0, **FAILED)]
    assert sift(given, config()).metrics["episode/reward"] == 1.0
    validated = sift(given, config(), validates=True)
    assert validated.kept == ["a_0_0", "b_0_0"]
    assert validated.metrics["episode/reward"] == 0.75
    assert validated.metrics["episode/failed"] == pytest.approx(1 / 3)


def test_an_agent_that_raises_after_a_cut_off_answer_has_reached_a_limit() -> None:
    sifted = sift([*rows("a", 0, stop_reason="max_response"), *rows("a", 1)], config())
    assert sifted.kept == ["a_0_0", "a_1_0"]
    assert sifted.metrics["episode/stopped/max_response"] == 1


def test_rows_of_a_branching_episode_count_once() -> None:
    given = [*rows("a", 0, streams=3, reward=1.0), *rows("a", 1, reward=0.0), *rows("a", 2)]
    sifted = sift(given, config())
    assert len(sifted.kept) == 5
    assert sifted.metrics["episode/reward"] == pytest.approx(2 / 3)
    assert sifted.metrics["episode/streams"] == pytest.approx(5 / 3)
    assert set(sifted.weight.values()) == {1.0}
    assert [len(group["outputs"]) for group in sifted.groups] == [3]


def test_an_episode_without_siblings_has_weight_0() -> None:
    given = [*rows("a", 0), *rows("a", 1, **FAILED), *rows("b", 0), *rows("b", 1, reward=0.0)]
    assert sift(given, config()).weight == {"a_0_0": 0.0, "b_0_0": 1.0, "b_1_0": 1.0}
    assert sift(given, config(algorithm="ppo")).weight["a_0_0"] == 1.0, "PPO has a critic"


def test_rloo_is_grpos_advantage_times_n_by_n_minus_1() -> None:
    given = [*rows("a", 0), *rows("a", 1), *rows("a", 2), *rows("b", 0), *rows("b", 1)]
    weight = sift(given, config(algorithm="rloo")).weight
    assert weight["a_0_0"] == pytest.approx(1.5)
    assert weight["b_0_0"] == pytest.approx(2.0)


@pytest.mark.parametrize("streams", [1, 4])
def test_every_episode_weighs_the_same_however_many_rows_it_has(streams: int) -> None:
    lengths = {0: 4, 1: 40, 2: 16}
    given = [
        row
        for session, tokens in lengths.items()
        for row in rows("a", session, streams=streams, tokens=tokens)
    ]
    weight = sift(given, config(loss_aggregation="episode")).weight
    total = sum(lengths.values())
    shares = [weight[f"a_{s}_0"] * tokens / total for s, tokens in lengths.items()]
    assert shares == pytest.approx([1 / 3] * 3)


def test_the_constant_normalisation_divides_by_the_longest_episode() -> None:
    settings = {"loss_aggregation": "constant", "max_turns": 4, "max_response_length": 8}
    weight = sift([*rows("a", 0), *rows("a", 1, tokens=30)], config(**settings)).weight
    assert weight["a_0_0"] == pytest.approx(40 / (2 * 32))
    assert weight["a_0_0"] == weight["a_1_0"]


@pytest.mark.parametrize(
    ("count", "updates", "workers", "group", "wanted"),
    [(16, 1, 1, 4, 16), (17, 1, 1, 4, 20), (17, 2, 1, 4, 12), (5, 1, 8, 3, 24), (1, 4, 2, 2, 2)],
)
def test_an_update_takes_all_rows_in_whole_groups(
    count: int, updates: int, workers: int, group: int, wanted: int
) -> None:
    found = rows_of_an_update(count, updates=updates, workers=workers, group_size=group)
    assert found == wanted
    assert found * updates >= count
    assert found % math.lcm(workers, group) == 0
