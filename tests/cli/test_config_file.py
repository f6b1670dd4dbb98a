"""One file of settings: what stands above what, and what is refused with its line."""

from __future__ import annotations

import json
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.cli.settings.catalogue import CONFIGS, SECTIONS, settings_of_section
from orbiter.train.cli.settings.config_file import Settings, load, write_run_config
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.cli.settings.toml import dump
from orbiter.train.errors import ConfigError
from orbiter.train.verl import VeRLConfig
from tests.cli.conftest import Run


def written(folder: Path, text: str, name: str = "config.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def built(file: Path | None, *overrides: str) -> VeRLConfig:
    return load(file, parse_overrides(overrides)).build("train", VeRLConfig)


def test_the_command_line_stands_above_the_file_and_the_file_above_the_defaults(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "[train]\nlearning_rate = 1e-4\nbatch_size = 3\n")
    config = built(file, "train.learning_rate=1e-6")
    assert (config.learning_rate, config.batch_size) == (1e-6, 3)
    assert config.group_size == VeRLConfig().group_size


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.learning_rate=1e-6", 1e-6),
        ("train.learning_rate = 5", 5),
        ("train.scale_rewards=false", False),
        ("train.scale_rewards=True", True),
        ("train.model=tiny", "tiny"),
        ('train.model="tiny"', "tiny"),
        ("train.system_prompt=Answer in one word.", "Answer in one word."),
        ("train.eval_every=none", None),
        ("train.clip_range_value=none", None),
    ],
)
def test_an_override_is_read_as_toml_would_read_it(word: str, value: object) -> None:
    name = word.partition("=")[0].strip().removeprefix("train.")
    assert getattr(built(None, word), name) == value


@pytest.mark.parametrize("word", ["train", "train.x", "=3", ".a=3", "train.=3"])
def test_a_word_that_is_no_setting_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"looks like train\.learning_rate=1e-6"):
        parse_overrides([word])


REFUSED = [
    (
        "[train]\nlearning_rte = 1\n",
        r"config.toml:2: .*'learning_rte'; did you mean 'learning_rate'",
    ),
    ("# a\n\n[trian]\nepochs = 1\n", r"config.toml:3: .*section 'trian'; did you mean 'train'"),
    ("[train]\n\nepochs = 0\n", r"config.toml:3: \[train\] epochs must be at least 1, got 0"),
    ("[train]\nepochs = 'two'\n", r"config.toml:2: \[train\] epochs must be a whole number"),
    ("[train]\nalgorithm = 'gpro'\n", r"config.toml:2: .*algorithm must be 'ppo', 'grpo'"),
    ("[train]\nlearning_rate = nan\n", r"config.toml:2: .*finite"),
    ("[train]\ntrackers = ['wanb']\n", r"config.toml:2: .*did you mean 'wandb'"),
    ("learning_rate = 1\n", r"config.toml:1: .*'learning_rate'"),
    ("batch_size = 1\n", r"did you mean train.batch_size\?"),
    ("train = 3\n", r"train is a section, and cannot be 3"),
    ("[data]\ntran = 'a'\n", r"config.toml:2: .*did you mean 'train'"),
    ("[train\n", r"is not valid TOML: .*line 1"),
    ("[train]\nepochs = 1\nepochs = 2\n", r"is not valid TOML: .*line 3"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        built(file)


def test_an_error_of_the_command_line_says_so(tmp_path: Path) -> None:
    file = written(tmp_path, "[train]\nepochs = 1\n")
    with pytest.raises(ConfigError, match=r"command line, train.epochs: epochs must be at least 1"):
        built(file, "train.epochs=0")
    with pytest.raises(ConfigError, match=r"command line, train.epoch: .*did you mean 'epochs'"):
        built(file, "train.epoch=2")


def test_yaml_says_the_same_and_its_exponents_are_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, "train:\n  learning_rate: 1e-5\n  epochs: 2\n", "c.yaml")
    config = built(file)
    assert (config.learning_rate, config.epochs) == (1e-5, 2)
    wrong = written(tmp_path, "train:\n  epoch: 2\n", "d.yaml")
    with pytest.raises(ConfigError, match=r"d.yaml:2: .*did you mean 'epochs'"):
        built(wrong)


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    trap = "train: !!python/object/apply:os.system ['touch " + str(tmp_path / "ran") + "']\n"
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(written(tmp_path, trap, "c.yaml"))
    assert not (tmp_path / "ran").exists()


def test_paths_in_the_file_are_its_own_and_those_of_the_command_line_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = '[data]\ntrain = "a.jsonl"\neval = "b.jsonl"\n[reward]\nr = "r.py:f"\n'
    file = written(tmp_path / "project", text)
    values = load(file, parse_overrides(["data.eval=c.jsonl"])).values
    assert values["data"]["train"] == str(tmp_path / "project" / "a.jsonl")
    assert values["data"]["eval"] == str(tmp_path / "here" / "c.jsonl")
    assert values["reward"]["r"] == f"{tmp_path / 'project' / 'r.py'}:f"


def test_a_run_s_settings_survive_in_its_folder(tmp_path: Path) -> None:
    text = '[data]\ntrain = "a.jsonl"\n[train]\nepochs = 2\nclip_range_value = "none"\n'
    values = load(written(tmp_path, text)).values
    kept = write_run_config(tmp_path / "runs" / "one", values)
    assert '"../../a.jsonl"' in kept.read_text()
    again = load(kept)
    assert again.values == values
    assert again.build("train", VeRLConfig).clip_range_value is None


def test_no_secret_reaches_a_run_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789")
    values = load(None, parse_overrides(["train.system_prompt=say canary-0123456789"])).values
    kept = write_run_config(tmp_path / "run", values)
    assert "canary" not in kept.read_text()
    assert "***" in kept.read_text()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = TEXTS | st.booleans() | st.integers() | st.floats(allow_nan=False)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXTS, SCALARS, max_size=3)


@given(st.dictionaries(TEXTS, VALUES | st.dictionaries(TEXTS, VALUES, max_size=3), max_size=4))
def test_what_is_written_as_toml_is_read_back_the_same(values: dict[str, Any]) -> None:
    assert tomllib.loads(dump(values)) == values


@pytest.mark.parametrize("text", ["1e-1", "1E-1", ".1e0", "1.e-1", "+1e-1"])
def test_yaml_reads_every_way_to_write_a_float(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"eval:\n  success: {text}\nreward:\n  a:\n    weight: {text}\n    fn: a.py:b\n"
    )
    values = load(file).values
    assert (values["eval"]["success"], values["reward"]["a"]["weight"]) == (0.1, 0.1)


WRONG = [
    ("train", "model", "5", r"model must be a text, got 5"),
    ("train", "scale_rewards", '"no"', r"scale_rewards must be True or False, got 'no'"),
    ("train", "epochs", "2.5", r"epochs must be a whole number, got 2\.5"),
    ("train", "lora_rank", "[1]", r"lora_rank must be a whole number, got \[1\]"),
    ("train", "device", "0", r"device must be a text, got 0"),
    ("train", "system_prompt", "7", r"system_prompt must be a text, got 7"),
    ("train", "ray_address", "8265", r"ray_address must be a text, got 8265"),
    ("sft", "reward_weighted", '"yes"', r"reward_weighted must be True or False, got 'yes'"),
    ("synth", "target_size", '"ten"', r"target_size must be a whole number, got 'ten'"),
    ("synth", "target_size", "2.5", r"target_size must be a whole number, got 2\.5"),
    ("synth", "min_score", '"high"', r"min_score must be a finite number, got 'high'"),
    ("synth", "max_cost", "true", r"max_cost must be a finite number, got True"),
    ("llm", "model", "5", r"model must be a text, got 5"),
    ("llm", "attempts", '"many"', r"attempts must be a whole number, got 'many'"),
    ("llm", "stream", "1", r"stream must be True or False, got 1"),
    ("data", "train", "5", r"train must name a file of data, got 5"),
    ("eval", "samples", "1.5", r"samples must be a whole number, got 1\.5"),
    ("eval", "success", "true", r"success must be a finite number, got True"),
    ("llm", "temperature", '"hot"', r"temperature must be a finite number, got 'hot'"),
    ("synth", "teacher", '"evolve"', r"teacher must be a list of names, got 'evolve'"),
]


@pytest.mark.parametrize(("section", "name", "value", "words"), WRONG)
def test_a_wrong_value_is_refused_by_place_name_and_value(
    tmp_path: Path, section: str, name: str, value: str, words: str
) -> None:
    file = written(tmp_path, f"[{section}]\n\n{name} = {value}\n")
    with pytest.raises(ConfigError, match=rf"^config\.toml:3: \[{section}\] {words}$"):
        use(load(file), section, name)
    override = load(None, parse_overrides([f"{section}.{name}={value}"]))
    with pytest.raises(ConfigError, match=rf"^command line, {section}\.{name}: {words}$"):
        use(override, section, name)


def use(settings: Settings, section: str, name: str) -> None:
    if settings_of_section(section)[name].own:
        settings.own(section)
        return
    module, config = CONFIGS[section]
    kind = getattr(import_module(f"orbiter.train.{module}"), config)
    settings.build(
        section, kind, **({"model": "m"} if section == "llm" and name != "model" else {})
    )


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "reward"])
def test_every_setting_can_be_listed_with_its_meaning(run: Run, section: str) -> None:
    ran = run("settings", section, "--json")
    assert ran.code == 0
    listed = json.loads(ran.out)
    assert listed.keys() == settings_of_section(section).keys()
    if section not in ("evolve",):
        assert all(each["help"] for each in listed.values())


def test_an_unknown_section_of_settings_is_a_usage_error(run: Run) -> None:
    ran = run("settings", "trian")
    assert ran.code == 2
    assert "did you mean 'train'" in ran.err
