"""The settings with which a model answers when it is measured: those that it was trained with."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from orbiter.train.cli.settings.catalogue import config_class
from orbiter.train.cli.settings.config_file import Settings

if TYPE_CHECKING:
    from orbiter.train.verl import VeRLConfig

OTHERS = ("sft", "offline", "prefer")
"""Sections of the trainings besides [train]."""
ANSWERING = frozenset(
    {
        *("model", "system_prompt", "max_prompt_length", "max_response_length", "on_long_prompt"),
        *("device", "dtype", "trust_remote_code", "seed", "progress"),
    }
)
"""Settings of every trainer that decide how its model answers."""
OFF: dict[str, Any] = {
    "output_dir": None,
    "resume": False,
    "save_every": 0,
    "trackers": (),
    "eval_every": None,
}
"""What a measurement does not do."""


def measuring_config(settings: Settings, **fixed: object) -> VeRLConfig:
    """Return the config of a model that is measured.

    It is [train] of the file. If the file is that of another training, it is what that one has in
    common with [train], such as the system prompt and the length of answers, and [train] of the
    command line.

    Raises:
        ConfigError: a setting is wrong.
    """
    from orbiter.train.verl import VeRLConfig

    given = settings.section("train")
    # A setting on the command line alone does not make the file one of [train].
    in_file = [name for name in given if f"train.{name}" not in settings.overridden]
    section = next((name for name in OTHERS if settings.section(name)), None)
    if in_file or section is None:
        return settings.build("train", VeRLConfig, **{**OFF, **fixed})
    trained = settings.build(section, config_class(section), **OFF)
    shared = {
        name: getattr(trained, name)
        for name in {field.name for field in fields(trained)} & ANSWERING - given.keys()
    }
    return settings.build("train", VeRLConfig, **{**shared, **OFF, **fixed})
