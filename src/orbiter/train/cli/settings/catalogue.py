"""All settings by section, read from the config classes that declare them.

Settings of the command line itself are declared here. A config class is imported only when its
section is used, so that no command loads another one's dependencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from importlib import import_module
from types import FunctionType
from typing import Any

from orbiter.train.checks import (
    Check,
    Number,
    OrNone,
    PathName,
    Table,
    Text,
    WholeNumber,
    check_fields,
    setting,
    shown,
)
from orbiter.train.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ListOf:
    """Checks that a value is a list of texts."""

    what: str

    def __call__(self, name: str, value: object) -> None:
        """Raise a `ConfigError` unless `value` is such a list."""
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{name} must be a list of {self.what}, got {shown(value)}")

    def __str__(self) -> str:
        return f"a list of {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSettings:
    """Base class of the command line's own settings, checked on creation."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(OwnSettings):
    """The settings of [data]."""

    train: str | None = setting(
        None, "File to learn from.", OrNone(PathName("a file of data")), path="file"
    )
    eval: str | None = setting(
        None, "File of held-out data.", OrNone(PathName("a file of data")), path="file"
    )
    format: str | None = setting(
        None, "Format of both files; none recognises it.", OrNone(Text("a file format"))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings(OwnSettings):
    """The settings of [agent]: what works on the tasks, in `train` and `eval`; one of three."""

    run: str | None = setting(
        None,
        'Your agent as "file.py:name": a function of a task, or an object with run(task).',
        OrNone(Text('an agent, such as "my_agent.py:agent"')),
        path="code",
    )
    command: str | None = setting(
        None,
        'A command that is started for each episode, such as "node agent.js"; its task is on '
        "standard input, the policy at OPENAI_BASE_URL.",
        OrNone(Text('a command, such as "node agent.js"')),
    )
    environment: str | None = setting(
        None,
        'Your environment as "file.py:name": a class with reset() and get_reward() whose other '
        "methods are tools, a function that makes one, or a list of tool functions.",
        OrNone(Text('an environment, such as "my_env.py:Env"')),
        path="code",
    )
    folder: str | None = setting(
        None,
        "Working directory of the command; none means the config file's folder.",
        OrNone(PathName("a folder")),
        path="file",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings(OwnSettings):
    """The settings of [eval]."""

    samples: int = setting(
        0, "Answers sampled for each item; 0 answers greedily, once.", WholeNumber(at_least=0)
    )
    success: float = setting(1.0, "Reward from which an answer passes.", Number())
    by: str | None = setting(
        None,
        "Field of the data, such as a label, for which each value is also measured separately.",
        OrNone(Text("a field of the data")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolveSettings(OwnSettings):
    """The settings of [evolve] besides the fields of `EvolutionConfig`."""

    prompts: list[str] = setting(list, "Prompts to start from.", ListOf("prompts"))
    strategy: str | None = setting(
        None,
        'Your own strategy as "file.py:make"; none evolves a prompt by the rewards.',
        OrNone(Text('a function, such as "file.py:make"')),
        path="code",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthSettings(OwnSettings):
    """The settings of [synth] besides the fields of `SynthesisConfig`."""

    out: str | None = setting(
        None, "File for the new items.", OrNone(PathName("a file")), path="file"
    )
    seeds: str | None = setting(
        None, "File of items to start from.", OrNone(PathName("a file of data")), path="file"
    )
    templates: list[Any] = setting(list, "Templates of items, with {variables}.")
    variables: dict[str, Any] = setting(dict, "Values of the templates' variables.", Table())
    teacher: list[str] = setting(
        list, "Synthesisers that ask the language model of [llm].", ListOf("names")
    )
    judge: str | None = setting(
        None,
        "Rubric by which the model of [llm] scores each item in [0, 1]; none scores nothing.",
        OrNone(Text("a rubric")),
    )
    step: str | None = setting(
        None,
        'Your own step as "file.py:make".',
        OrNone(Text('a function, such as "file.py:make"')),
        path="code",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmSettings(OwnSettings):
    """The settings of [llm] besides the fields of `ClientConfig`."""

    temperature: float | None = setting(
        None, "Sampling temperature; none means the model's default.", OrNone(Number(at_least=0))
    )
    max_tokens: int | None = setting(
        None,
        "Longest answer in tokens; none means the model's default.",
        OrNone(WholeNumber(at_least=1)),
    )
    cache: str | None = setting(
        None, "File that keeps answers.", OrNone(PathName("a file")), path="file"
    )
    price: dict[str, Any] = setting(
        dict, "Prices per million tokens: { input = ..., output = ... }.", Table()
    )


OWN: Mapping[str, type[OwnSettings]] = {
    "data": DataSettings,
    "agent": AgentSettings,
    "eval": EvalSettings,
    "evolve": EvolveSettings,
    "synth": SynthSettings,
    "llm": LlmSettings,
}
CONFIGS: Mapping[str, tuple[str, str]] = {
    "train": ("verl.config", "VeRLConfig"),
    "sft": ("sft.config", "SFTConfig"),
    "offline": ("offline.config", "OfflineConfig"),
    "prefer": ("preference.config", "PreferenceConfig"),
    "reward-model": ("preference.reward_model_config", "RewardModelConfig"),
    "evolve": ("evolution.config", "EvolutionConfig"),
    "synth": ("synthesis.pipeline.config", "SynthesisConfig"),
    "llm": ("llm.config", "ClientConfig"),
}
"""The config class of each section: its module and its name."""
SECTIONS = ("data", "reward", *dict.fromkeys([*CONFIGS, *OWN]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting and its description."""

    section: str
    name: str
    type: str
    """The field's annotation as source text."""
    default: object
    help: str
    check: Check | None
    path: str | None
    """The kind of path: "file", "code" (file.py:name), "model" or None."""
    own: bool
    """Whether it belongs to the command line rather than the config class."""

    @property
    def may_be_none(self) -> bool:
        """Whether "none" means no value."""
        # By the annotation's text, because the classes are not imported for their types.
        return "None" in self.type


def must_be(check: Check | None) -> str:
    """Return what a check accepts, in words; a function says it in its docstring."""
    if check is None:
        return ""
    if isinstance(check, FunctionType):
        return (check.__doc__ or "").partition("\n")[0].removeprefix("Accept ").rstrip(".")
    return str(check)


def settings_of_section(section: str) -> dict[str, Setting]:
    """Return all settings of a section by name; `reward` has none, since its names are free."""
    known: dict[str, Setting] = {}
    if section in CONFIGS:
        declared = fields(config_class(section))
        known |= {f.name: _setting(section, f, own=False) for f in declared if _settable(f)}
    if section in OWN:
        known |= {f.name: _setting(section, f, own=True) for f in fields(OWN[section])}
    return known


def config_class(section: str) -> Any:  # noqa: ANN401 - the classes have no common base
    """Return the config class of a section, which is imported now."""
    module, name = CONFIGS[section]
    return getattr(import_module(f"orbiter.train.{module}"), name)


def _settable(field: Field[Any]) -> bool:
    return bool(field.metadata.get("cli", True)) and field.name != "on_event"


def _setting(section: str, field: Field[Any], *, own: bool) -> Setting:
    default = field.default
    if field.default_factory is not MISSING:
        default = field.default_factory()
    # EvolutionConfig does not mark its path itself.
    paths = {"run_dir": "file"} if section == "evolve" else {}
    return Setting(
        section=section,
        name=field.name,
        type=str(field.type),
        default=None if default is MISSING else default,
        help=str(field.metadata.get("help", "")),
        check=field.metadata.get("check"),
        path=field.metadata.get("path", paths.get(field.name)),
        own=own,
    )
