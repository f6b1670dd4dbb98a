"""Every field of every config is declared with a help text, and refuses what it cannot mean."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields
from typing import Any

import pytest

from orbiter.train.checks import (
    Boolean,
    Check,
    Number,
    OneOf,
    OrNone,
    PathName,
    Text,
    WholeNumber,
    is_finite_number,
    shown,
)
from orbiter.train.errors import ConfigError
from orbiter.train.llm.config import ClientConfig
from orbiter.train.sft import SFTConfig
from orbiter.train.synthesis.pipeline.config import SynthesisConfig
from orbiter.train.trainer import TrainConfig
from orbiter.train.verl import VeRLConfig

CONFIGS: list[type[Any]] = [TrainConfig, SFTConfig, VeRLConfig, SynthesisConfig, ClientConfig]
REQUIRED = {ClientConfig: {"model": "m"}}
FIELDS = [(config, declared) for config in CONFIGS for declared in fields(config)]
NAMES = [f"{config.__name__}.{declared.name}" for config, declared in FIELDS]


@pytest.mark.parametrize(("config", "declared"), FIELDS, ids=NAMES)
def test_every_field_has_a_help_text(config: type[Any], declared: Field[Any]) -> None:
    words = declared.metadata["help"]
    assert words[0].isupper() or words[0] == '"'
    assert words.endswith(".")


@pytest.mark.parametrize(("config", "declared"), FIELDS, ids=NAMES)
@pytest.mark.parametrize("wrong", [object(), math.nan, b"no", {1: object()}], ids=type)
def test_every_field_refuses_nonsense_by_its_name(
    config: type[Any], declared: Field[Any], wrong: object
) -> None:
    with pytest.raises(ConfigError, match=rf"\b{declared.name}\b|tracker"):
        config(**{**REQUIRED.get(config, {}), declared.name: wrong})


@pytest.mark.parametrize(("config", "declared"), FIELDS, ids=NAMES)
def test_the_default_of_every_field_passes_its_own_check(
    config: type[Any], declared: Field[Any]
) -> None:
    check = declared.metadata["check"]
    if check is not None and declared.default is not MISSING:
        check(declared.name, declared.default)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (WholeNumber(at_least=1, at_most=3), [1, 3], [0, 4, True, 2.0, "2", None, 10**5000]),
        (Number(above=0, below=1), [0.5, 1e-300], [0, 1, False, math.inf, 10**400, "0.5", 1j]),
        (Number(at_least=0, at_most=1), [0, 1, 0.5], [-1e-9, 1.1, math.nan]),
        (OneOf(("a", "b")), ["a", "b"], ["c", "", None, ["a"], 1]),
        (Boolean(), [True, False], ["no", 0, 1, None, "true"]),
        (Text("a model"), ["m"], ["", "  ", 5, None, b"m"]),
        (PathName(), ["a", "a/b"], ["", 5, None]),
        (OrNone(WholeNumber(at_least=1)), [None, 1], [0, "none"]),
    ],
    ids=lambda value: str(value) if callable(value) else "values",
)
def test_a_check_accepts_and_refuses(check: Check, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        check("knob", value)
    for value in wrong:
        with pytest.raises(ConfigError, match=r"^knob must"):
            check("knob", value)


def test_an_error_shows_any_value_in_a_few_words() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shown(Hostile()) == "a value of type Hostile"
    assert shown(10**10000) == "a value of type int"
    assert len(shown("x" * 10_000)) < 100


def test_a_number_too_large_for_a_float_is_no_finite_number() -> None:
    assert is_finite_number(10**300)
    assert not is_finite_number(10**400)
