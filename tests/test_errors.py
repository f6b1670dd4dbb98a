import asyncio
import pickle
import sys
from pathlib import Path

import pytest

from orbiter.train import errors
from orbiter.train.errors import (
    CallbackError,
    DataError,
    MissingExtraError,
    TrainError,
    boundary,
    did_you_mean,
    require,
)

CHILDREN = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_every_error_is_a_train_error_and_the_standard_kin() -> None:
    kin = {
        "ConfigError": ValueError,
        "DataError": ValueError,
        "StateError": RuntimeError,
        "CallbackError": RuntimeError,
        "TrainingError": RuntimeError,
        "StorageError": OSError,
        "MissingExtraError": ImportError,
    }
    found = {k.__name__: k for k in CHILDREN if issubclass(k, TrainError) and k is not TrainError}
    assert set(found) == set(kin)
    assert all(issubclass(found[name], parent) for name, parent in kin.items())


def test_the_tree_in_the_docstring_names_every_error() -> None:
    named = {k.__name__ for k in CHILDREN if issubclass(k, TrainError)}
    assert all(name in (errors.__doc__ or "") for name in named)


def test_errors_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(DataError("line 3: reward is not a number")))
    assert isinstance(error, DataError)
    assert str(error) == "line 3: reward is not a number"


def test_a_foreign_error_comes_out_named_with_its_cause() -> None:
    weights: dict[str, float] = {}
    told = pytest.raises(CallbackError, match="reward 'brevity' raised KeyError: 'x'")
    with told as caught, boundary("reward 'brevity'"):
        weights["x"]
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "passing", [DataError("ours"), asyncio.CancelledError(), KeyboardInterrupt()]
)
def test_ours_and_cancellation_pass_the_boundary_unchanged(passing: BaseException) -> None:
    with pytest.raises(type(passing)) as caught, boundary("reward 'brevity'"):
        raise passing
    assert caught.value is passing


def test_a_missing_module_names_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'orbiter-train\[llm\]'"):
        require("no_such_module_at_all.inner", extra="llm")


def test_a_module_that_is_broken_inside_keeps_its_own_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_inside.py").write_text("import another_missing_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_missing_module") as caught:
        require("broken_inside", extra="llm")
    assert not isinstance(caught.value, MissingExtraError)
    sys.modules.pop("broken_inside", None)


def test_a_near_name_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("promt", ["prompt", "reward"]) == "; did you mean 'prompt'?"
    assert did_you_mean("zzz", ["prompt", "reward"]) == ""
