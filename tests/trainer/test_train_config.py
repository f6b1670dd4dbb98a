import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import pytest

from orbiter.train.checks import Number, WholeNumber, setting
from orbiter.train.errors import ConfigError
from orbiter.train.trainer import TrainConfig


def test_the_guides_config_is_made_as_written() -> None:
    config = TrainConfig(
        epochs=10, batch_size=32, learning_rate=1e-4, warmup_steps=100, eval_every=500
    )
    assert (config.epochs, config.eval_every, config.output_dir) == (10, 500, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("epochs", True, "epochs must be a whole number, got True"),
        ("epochs", 2.0, "epochs must be a whole number, got 2.0"),
        ("batch_size", -3, "batch_size must be at least 1, got -3"),
        ("batch_size", "32", "batch_size must be a whole number, got '32'"),
        ("learning_rate", 0.0, "learning_rate must be above 0, got 0.0"),
        ("learning_rate", math.nan, "learning_rate must be a finite number, got nan"),
        ("learning_rate", math.inf, "learning_rate must be a finite number, got inf"),
        ("learning_rate", True, "learning_rate must be a finite number, got True"),
        ("learning_rate", "1e-4", "learning_rate must be a finite number, got '1e-4'"),
        ("warmup_steps", -1, "warmup_steps must be at least 0, got -1"),
        ("warmup_steps", None, "warmup_steps must be a whole number, got None"),
        ("eval_every", 0, "eval_every must be at least 1, got 0"),
        ("seed", -1, "seed must be at least 0, got -1"),
        ("seed", 1.5, "seed must be a whole number, got 1.5"),
        ("output_dir", "", "output_dir must name a folder, got ''"),
        ("output_dir", 3, "output_dir must name a folder, got 3"),
    ],
)
def test_a_wrong_setting_is_refused_by_field_and_value(
    field: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError) as info:
        TrainConfig(**{field: value})  # type: ignore[arg-type] # the mistake under test
    assert str(info.value) == message


def test_replace_checks_again_and_a_config_is_a_value() -> None:
    config = TrainConfig(output_dir=Path("runs"), learning_rate=1)
    assert pickle.loads(pickle.dumps(config)) == config
    assert replace(config, epochs=3).epochs == 3
    with pytest.raises(ConfigError, match="epochs"):
        replace(config, epochs=0)
    with pytest.raises(FrozenInstanceError):
        config.epochs = 2  # type: ignore[misc] # the mistake under test


def test_a_subclass_with_slots_checks_its_own_settings_and_the_inherited_ones() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Longer(TrainConfig):
        beta: float = setting(0.1, "Weight.", Number(at_least=0, at_most=1))
        gamma: float = 0.5

        def __post_init__(self) -> None:
            TrainConfig.__post_init__(self)
            Number(above=self.beta)("gamma", self.gamma)

    assert Longer(beta=0.3).batch_size == TrainConfig().batch_size
    for wrong in ({"beta": 1.5}, {"epochs": 0}, {"gamma": 0.05}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Longer(**wrong)


def test_limits_are_kept_to_the_letter() -> None:
    Number(at_least=0, at_most=1)("x", 0)
    Number(at_least=0, at_most=1)("x", 1)
    WholeNumber(at_least=0)("n", 0)
    with pytest.raises(ConfigError, match=r"x must be at least 0, got -0\.1"):
        Number(at_least=0)("x", -0.1)
    with pytest.raises(ConfigError, match="x must be at most 1, got 2"):
        Number(at_most=1)("x", 2)
    with pytest.raises(ConfigError, match="x must be above 0, got 0"):
        Number(above=0)("x", 0)
