import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError, DataError, StateError, StorageError
from orbiter.train.runlog import MASK, RunLog, read_run
from tests.children import run_child

CONFIG: Mapping[str, object] = {"learning_rate": 0.1, "epochs": 2}


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    gamma: float = 0.9


def files(folder: Path) -> dict[str, bytes]:
    names = ("run.json", "metrics.jsonl", "samples.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def steps(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.write(step, {"loss": 1 / step, "tokens": 10 * step})
        log.sample(step, {"prompt": "2+3", "completion": str(step)})


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", CONFIG) as log:
        log.write(0, {"reward": 0.5})
        log.write(3, {"loss": 0.25, "reward": None, "tokens": 7})
        log.sample(3, {"prompt": "sch\u00f6n \u2028 \ud800", "reward": 1.0, "ids": [1, 2]})
    run = read_run(tmp_path / "run")
    assert run.config == CONFIG
    assert run.metrics == ({"step": 0, "reward": 0.5}, {"step": 3, "loss": 0.25, "tokens": 7})
    assert run.series("reward") == [(0, 0.5)]
    assert run.samples == (
        {"step": 3, "prompt": "sch\u00f6n \u2028 \ud800", "reward": 1.0, "ids": [1, 2]},
    )


def test_times_stand_apart_and_are_cut_off_with_their_steps(tmp_path: Path) -> None:
    with RunLog(tmp_path, CONFIG) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 0.5})
            log.time(step, {"seconds": 0.25 * step})
    environment = (tmp_path / "environment.json").read_bytes()
    assert {"began", "python", "system", "packages"} <= json.loads(environment).keys()
    with RunLog(tmp_path, CONFIG, resume_from=1) as log:
        log.time(2, {"seconds": 9})
    run = read_run(tmp_path)
    assert [row["seconds"] for row in run.times] == [0.25, 9]
    assert run.series("loss") == [(1, 0.5)]
    assert (tmp_path / "environment.json").read_bytes() == environment


@given(
    st.dictionaries(
        st.text().filter(lambda name: name != "step"), st.floats() | st.integers(), max_size=4
    )
)
def test_any_metric_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with RunLog(folder) as log:
        log.write(1, metrics)
    (row,) = read_run(folder).metrics
    assert list(row) == ["step", *metrics]
    for name, value in metrics.items():
        assert row[name] == value or (math.isnan(value) and math.isnan(row[name]))


def test_the_files_are_strict_json_even_where_a_run_diverged(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(1, {"loss": math.nan, "kl": math.inf, "lag": -math.inf})
    line = (tmp_path / "metrics.jsonl").read_text()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(found.pop("_crc")) == 8
    assert found == {"step": 1, "loss": "NaN", "kl": "Infinity", "lag": "-Infinity"}
    (row,) = read_run(tmp_path).metrics
    assert math.isnan(row["loss"])
    assert (row["kl"], row["lag"]) == (math.inf, -math.inf)


def test_numpy_numbers_and_booleans_are_metrics(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        measured = {"loss": np.float32(0.5), "count": np.int64(3), "solved": True, "big": 10**400}
        log.write(1, cast("Mapping[str, float]", measured))
    assert read_run(tmp_path).metrics == (
        {"step": 1, "loss": 0.5, "count": 3, "solved": 1, "big": 10**400},
    )


def test_a_metric_that_is_no_number_is_refused_by_name_and_leaves_no_trace(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        with pytest.raises(DataError, match="metric 'loss' of step 4 must be a number, got 'low'"):
            log.write(4, {"kl": 1.0, "loss": "low"})  # type: ignore[dict-item] # under test
        log.write(1, {"kl": 1.0})
    assert read_run(tmp_path).metrics == ({"step": 1, "kl": 1.0},)


def test_a_metric_cannot_be_called_step(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log, pytest.raises(DataError, match="'step' is the name of the step"):
        log.write(1, {"step": 2})


@pytest.mark.parametrize("step", [-1, 1.5, "2", None, 6])
def test_a_step_that_goes_back_or_is_none_is_refused(tmp_path: Path, step: object) -> None:
    with RunLog(tmp_path) as log:
        log.write(7, {"loss": 1.0})
        with pytest.raises(DataError, match=r"last one in metrics.jsonl \(7\).*resume_from"):
            log.write(step, {"loss": 1.0})  # type: ignore[arg-type] # the mistake under test
        log.write(7, {"accuracy": 0.5})


def test_a_resumed_run_leaves_the_same_bytes_as_one_never_interrupted(tmp_path: Path) -> None:
    with RunLog(tmp_path / "whole", CONFIG) as log:
        steps(log, 1, 9)
    with RunLog(tmp_path / "cut", CONFIG) as log:
        steps(log, 1, 6)
    with RunLog(tmp_path / "cut", CONFIG, resume_from=4) as log:
        assert read_run(tmp_path / "cut").metrics[-1]["step"] == 4
        steps(log, 5, 9)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_torn_by_a_kill_does_not_outlive_the_resume(tmp_path: Path, cut: int) -> None:
    with RunLog(tmp_path / "whole", CONFIG) as log:
        steps(log, 1, 5)
    with RunLog(tmp_path / "torn", CONFIG) as log:
        steps(log, 1, 4)
    path = tmp_path / "torn" / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    assert all("loss" in row for row in read_run(tmp_path / "torn").metrics)
    with RunLog(tmp_path / "torn", CONFIG, resume_from=2) as log:
        steps(log, 3, 5)
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_resuming_from_0_starts_over_and_from_the_future_keeps_all(tmp_path: Path) -> None:
    with RunLog(tmp_path, CONFIG) as log:
        steps(log, 1, 3)
    with RunLog(tmp_path, CONFIG, resume_from=99) as log:
        assert len(read_run(tmp_path).metrics) == 3
    with RunLog(tmp_path, CONFIG, resume_from=0) as log:
        assert read_run(tmp_path).metrics == ()
        assert read_run(tmp_path).samples == ()
        steps(log, 1, 1)


def test_without_resume_from_a_reopened_folder_goes_on_but_not_back(tmp_path: Path) -> None:
    with RunLog(tmp_path, CONFIG) as log:
        steps(log, 1, 3)
    with RunLog(tmp_path, CONFIG) as log:
        with pytest.raises(DataError, match="resume_from"):
            log.write(1, {"loss": 1.0})
        log.write(3, {"eval/reward": 0.9})
    assert read_run(tmp_path).series("eval/reward") == [(3, 0.9)]


def test_another_runs_folder_is_refused_with_every_difference(tmp_path: Path) -> None:
    RunLog(tmp_path, {"epochs": 2, "seed": 1, "beta": 0.5}).close()
    before = files(tmp_path)
    with pytest.raises(ConfigError) as info:
        RunLog(tmp_path, {"epochs": 3, "seed": 1, "gamma": None}, resume_from=0)
    message = str(info.value)
    assert "beta is 0.5 there and absent here" in message
    assert "epochs is 2 there and 3 here" in message
    assert "gamma is absent there and None here" in message
    assert "seed" not in message
    assert files(tmp_path) == before
    RunLog(tmp_path, {"epochs": 2, "seed": 1, "beta": 0.5}).close()  # no lock was left behind


def test_no_configuration_takes_the_one_that_is_there(tmp_path: Path) -> None:
    RunLog(tmp_path, CONFIG).close()
    RunLog(tmp_path).close()
    assert read_run(tmp_path).config == CONFIG


def test_a_model_may_live_in_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    RunLog(tmp_path, CONFIG).close()
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'


def test_a_configuration_of_plain_values_enums_paths_and_records_is_kept(tmp_path: Path) -> None:
    config: Mapping[str, object] = {
        "colour": Colour.RED,
        "inner": Inner(),
        "folder": Path("models/tiny"),
        "ratios": (0.8, 0.2),
        "seed": np.int64(3),
        "clip": None,
        "lora": False,
    }
    RunLog(tmp_path, config).close()
    RunLog(tmp_path, config).close()
    assert read_run(tmp_path).config == {
        "colour": "red",
        "inner": {"gamma": 0.9},
        "folder": str(Path("models/tiny")),
        "ratios": [0.8, 0.2],
        "seed": 3,
        "clip": None,
        "lora": False,
    }


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"reward": len}, "config.reward is of type builtin_function_or_method"),
        ({"a": {"b": [1, {2}]}}, r"config.a.b\[1\] is of type set"),
        ({"rate": math.nan}, "config.rate must be finite, got nan"),
        ({1: 2}, "config has the key 1"),
    ],
)
def test_a_configuration_that_json_cannot_say_is_refused_by_its_place(
    tmp_path: Path, config: Mapping[str, object], where: str
) -> None:
    with pytest.raises(DataError, match=where):
        RunLog(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_sample_that_json_cannot_say_is_refused_by_its_place(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log, pytest.raises(DataError, match=r"sample of step 2\.image is of"):
        log.sample(2, {"image": b"\x00"})


def test_no_secret_reaches_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_API_KEY", "canary-in-the-environment")
    secrets = {
        "api_key": "canary-key",
        "apiKey": "canary-camel",
        "HF-TOKEN": "canary-hub",
        "headers": {"Authorization": "Basic canary-basic", "x": "Bearer canary0123456789abc"},
        "passwords": ["canary-one"],
        "url": "https://user:canary-url@host.example/v1",
        "note": "use sk-canary0123456789abcdef, not canary-in-the-environment",
    }
    with RunLog(tmp_path, secrets) as log:
        log.sample(1, secrets)
    for path in tmp_path.iterdir():
        assert b"canary" not in path.read_bytes(), path
    assert read_run(tmp_path).config["api_key"] == MASK
    assert read_run(tmp_path).config["url"] == f"https://{MASK}@host.example/v1"
    RunLog(tmp_path, secrets).close()  # masked, it is still the same run


def test_a_secret_that_holds_another_is_masked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AAA_API_KEY", "canary-short")
    monkeypatch.setenv("ZZZ_API_KEY", "canary-short-and-the-rest")
    RunLog(tmp_path, {"note": "canary-short-and-the-rest"}).close()
    assert read_run(tmp_path).config == {"note": MASK}


def test_what_only_sounds_like_a_secret_is_kept(tmp_path: Path) -> None:
    config = {
        "pad_token": "<pad>",
        "max_tokens": 64,
        "token_ids": [1, 2],
        "key": "value",
        "api_key": None,
        "monkey": "banana",
        "task": "sk-learn",
    }
    RunLog(tmp_path, config).close()
    assert read_run(tmp_path).config == config


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    with RunLog(tmp_path, CONFIG) as log:
        log.write(1, {"loss": 0.5})
        with pytest.raises(StorageError, match="only one process may write"):
            RunLog(tmp_path, CONFIG)
        assert read_run(tmp_path).series("loss") == [(1, 0.5)]


def test_a_killed_writer_leaves_every_record_it_acknowledged(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from orbiter.train.runlog import RunLog\n"
        "log = RunLog(sys.argv[1], {'a': 1})\n"
        "for step in range(500): log.write(step, {'loss': 1.0}); log.sample(step, {'t': 'x'})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run_child([sys.executable, "-c", code, str(tmp_path)])
    with RunLog(tmp_path, {"a": 1}, resume_from=498):
        pass
    run = read_run(tmp_path)
    assert len(run.metrics) == len(run.samples) == 499


def test_a_closed_log_refuses_to_be_written(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.close()
    log.close()
    with pytest.raises(StateError, match="closed"):
        log.write(1, {"loss": 1.0})


def test_reading_what_is_no_run_or_is_damaged_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"holds no run: run.json is missing"):
        read_run(tmp_path)
    with RunLog(tmp_path, CONFIG) as log:
        steps(log, 1, 2)
    good = (tmp_path / "metrics.jsonl").read_bytes()
    for line in (
        b"not json\n",
        b"[1]\n",
        b'{"loss": 1}\n',
        b"\xff\n",
        b'{"step": 2, "loss": "low"}\n',
        b'{"step": 2, "loss": [1]}\n',
    ):
        (tmp_path / "metrics.jsonl").write_bytes(good + line)
        with pytest.raises(StorageError, match=r"metrics.jsonl:3 is not a record"):
            read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(good)
    for text in ("", "[]", '{"config": 3}', "{}"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(StorageError, match=r"run.json is not the description of a run"):
            read_run(tmp_path)
