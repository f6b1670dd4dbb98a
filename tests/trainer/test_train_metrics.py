import math
import pickle

import pytest

from orbiter.train.errors import DataError
from orbiter.train.evaluation import mean_interval
from orbiter.train.trainer import TrainMetrics


def test_what_was_not_measured_is_none() -> None:
    metrics = TrainMetrics(loss=0.5, accuracy=0.85)
    assert (metrics.loss, metrics.accuracy, metrics.reward) == (0.5, 0.85, None)
    assert metrics.to_dict() == {"loss": 0.5, "accuracy": 0.85, "reward": None}
    assert metrics.measured() == {"loss": 0.5, "accuracy": 0.85}
    assert TrainMetrics().measured() == {}


def test_further_metrics_are_reached_by_name() -> None:
    metrics = TrainMetrics(0.5, extra={"kl": 0.02, "tokens": 640})
    assert metrics["kl"] == 0.02
    assert metrics["loss"] == 0.5
    assert metrics.extra["tokens"] == 640
    assert metrics.to_dict()["tokens"] == 640


def test_a_metric_that_was_not_measured_is_a_key_error_that_names_the_others() -> None:
    with pytest.raises(KeyError, match="'reward' was not measured; these were: loss, kl"):
        TrainMetrics(0.5, extra={"kl": 0.0})["reward"]
    with pytest.raises(KeyError, match="these were: none"):
        TrainMetrics()["kl"]


def test_the_interval_of_the_reward_is_told_with_it() -> None:
    interval = mean_interval([0.0, 1.0, 1.0, 1.0])
    metrics = TrainMetrics(reward=interval.mean, reward_interval=interval)
    assert metrics["reward_low"] == interval.low < metrics["reward"] < metrics["reward_high"]
    one = mean_interval([1.0])
    assert TrainMetrics(reward=1.0, reward_interval=one)["reward_high"] == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.5"])
def test_what_is_no_finite_number_is_no_result(bad: float) -> None:
    for name in ("loss", "accuracy", "reward"):
        with pytest.raises(DataError, match=f"metric '{name}' must be a finite number, got"):
            TrainMetrics(**{name: bad})  # type: ignore[arg-type] # any of the three
    with pytest.raises(DataError, match="metric 'kl' must be a finite number"):
        TrainMetrics(extra={"kl": bad})


def test_none_among_the_extra_metrics_is_refused() -> None:
    with pytest.raises(DataError, match="metric 'kl' must be a finite number, got None"):
        TrainMetrics(extra={"kl": None})  # type: ignore[dict-item] # the mistake under test


@pytest.mark.parametrize("name", ["loss", "extra", "reward_low"])
def test_an_extra_metric_cannot_take_a_fields_name(name: str) -> None:
    with pytest.raises(DataError, match=name):
        TrainMetrics(extra={name: 1.0})


def test_metrics_are_values() -> None:
    given = {"kl": 0.1}
    metrics = TrainMetrics(0.5, extra=given)
    given["kl"] = 9.0
    assert metrics["kl"] == 0.1
    assert pickle.loads(pickle.dumps(metrics)) == metrics == TrainMetrics(0.5, extra={"kl": 0.1})
    assert len({metrics, TrainMetrics(0.5, extra={"kl": 0.1})}) == 1
    assert metrics != TrainMetrics(0.5)
