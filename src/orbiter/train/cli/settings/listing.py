"""`orbiter-train settings`: list the settings of a section with default, range and meaning."""

from __future__ import annotations

from typing import Annotated

import typer

from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.cli.settings.catalogue import (
    SECTIONS,
    Setting,
    must_be,
    settings_of_section,
)
from orbiter.train.errors import ConfigError, did_you_mean

settings_app = typer.Typer(rich_markup_mode=None)


@settings_app.command()
def settings(
    section: Annotated[
        str,
        typer.Argument(
            help="train, sft, offline, prefer, reward-model, evolve, synth, llm, data, agent "
            "or eval."
        ),
    ],
    *,
    as_json: JsonFlag = False,
) -> None:
    """List the settings of a section of the config file.

    Each can also be given on the command line: orbiter-train train train.learning_rate=1e-6.
    """
    if section not in SECTIONS or section == "reward":
        known = [name for name in SECTIONS if name != "reward"]
        raise ConfigError(
            f"there is no section {section!r}{did_you_mean(section, known)}; sections: "
            f"{', '.join(known)}"
        )
    listed = settings_of_section(section).values()
    output = Output(as_json=as_json)
    output.table(
        ("setting", "default", "must be", "meaning"),
        [(each.name, written(each.default), must_be(each.check), each.help) for each in listed],
    )
    output.result({each.name: _record(each) for each in listed})


def written(default: object) -> str:
    """Return a default as it is written in a config file."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f'"{default}"'
    if default in ((), [], {}) or default is None:
        return {"()": "[]", "None": "none"}.get(repr(default), repr(default))
    return repr(default)


def _record(setting: Setting) -> dict[str, object]:
    default = setting.default
    return {
        "default": list(default) if isinstance(default, tuple) else default,
        "type": setting.type,
        "check": must_be(setting.check),
        "help": setting.help,
    }
