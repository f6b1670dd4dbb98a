"""Help is quick, complete, and loads nothing that it does not need."""

from __future__ import annotations

import json
import resource
import statistics
import sys

import pytest

from orbiter.train.cli.app import COMMANDS
from orbiter.train.cli.settings.catalogue import SECTIONS
from tests.children import run_child
from tests.cli.conftest import Run


def cpu_seconds(*command: str) -> float:
    """CPU time of a child process; how busy the machine is does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_child([sys.executable, *command], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_at_most_twice_as_long_as_importing_typer_and_rich() -> None:
    pairs = [
        (
            cpu_seconds("-m", "orbiter.train.cli", "--help"),
            cpu_seconds("-c", "import typer, rich"),
        )
        for _ in range(7)
    ]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert ours <= 2 * theirs, f"{ours:.3f} s against {theirs:.3f} s"


def test_help_loads_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from orbiter.train.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'msgspec', 'orbiter.train.cli.train'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    done = run_child([sys.executable, "-c", code], check=True)
    assert "LOADED []" in done.stdout


def test_help_names_every_command(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in ran.out] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert ran.code == 0
    assert f"Usage: orbiter-train {name}" in ran.out
    assert "--help" in ran.out


@pytest.mark.parametrize("words", ["data check", "data split", "runs list", "runs resume"])
def test_so_do_the_commands_within(run: Run, words: str) -> None:
    ran = run(*words.split(), "--help")
    assert ran.code == 0
    assert f"Usage: orbiter-train {words}" in ran.out


def test_a_misspelt_command_is_a_usage_error(run: Run) -> None:
    ran = run("trian")
    assert ran.code == 2
    assert "No such command" in ran.err


def test_the_version_is_the_package_s(run: Run) -> None:
    ran = run("--version")
    assert ran.code == 0
    assert ran.out.startswith("orbiter-train ")


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "reward"])
def test_the_listed_settings_say_in_words_what_they_accept(run: Run, section: str) -> None:
    listed = json.loads(run("settings", section, "--json").out)
    assert listed
    assert not [name for name, each in listed.items() if "<function" in each["check"]]
