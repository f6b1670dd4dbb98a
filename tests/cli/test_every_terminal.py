"""Every command in every surrounding: widths, pipes, NO_COLOR, old encodings, spaces in paths."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orbiter.train.cli.app import COMMANDS, main
from orbiter.train.cli.exits import ExitCode
from tests.cli.conftest import Run
from tests.report.folders import training

FOLDER = "läufe mit leerzeichen"
STRATEGY = """
from orbiter.train import EvolutionStrategy

class Longer(EvolutionStrategy):
    async def evaluate(self, candidate):
        return float(len(candidate))

    async def mutate(self, candidate):
        return candidate + "a"
"""
VERBS: dict[str, tuple[str, tuple[str, ...]]] = {
    # Command, and facts that must be on the screen whatever its width.
    "init": ("init 'neu hier'", ("config.toml", "cd 'neu hier'")),
    "check": ("data check data.jsonl", ("20 items", "no problems found")),
    "stats": ("data stats data.jsonl", ("mean reward", "without a reward")),
    "show": ("data show data.jsonl -n 2", ("aegean", "2 of 20 items")),
    "filter": ("data filter data.jsonl --min-reward 1 -o 'gut ö.jsonl'", ("20 kept",)),
    "merge": ("data merge data.jsonl eval.jsonl -o all.jsonl", ("28 items",)),
    "dedup": ("data dedup data.jsonl -o once.jsonl", ("20 items, 0 left out",)),
    "split": ("data split data.jsonl -o parts", ("train.jsonl", "0 leaks")),
    "convert": ("convert data.jsonl data.csv", ("jsonl to csv: 20 items",)),
    "synth": ("synth -c config.toml", ("12 items in",)),
    "evolve": (
        "evolve -c config.toml evolve.strategy=longer.py:Longer evolve.epochs=2",
        ("run folder", "ended by epochs", "report.html"),
    ),
    "report": ("report runs/eins", ("report.html",)),
    "list": ("runs list", ("runs/eins", "runs/zwei drei", "damaged", "runs/kaputt")),
    "compare": ("runs compare runs/eins 'runs/zwei drei'", ("measured last", "reward")),
    "runs show": ("runs show runs/eins", ("runs/eins", "endpoint calls")),
    "settings": ("settings synth", ("target_size", "must be")),
}
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train --dry-run": ("train -c config.toml --dry-run", ("longest item", "memory")),
    "train": ("train -c config.toml train.max_seconds=1 --out 'runs/neu er'", ("report.html",)),
    "sft": ("sft -c config.toml sft.model=tiny sft.max_seconds=1", ("report.html",)),
    "eval": ("eval -c config.toml -m tiny", ("8 items of", "reward/vowels")),
    "generate": ("generate -m tiny --max-tokens 4 'Name a bird.'", ()),
    "doctor": ("doctor", ("orbiter-", "everything that training needs is installed")),
}
ENDLESS = {"serve", "proxy", "label"}
"""Commands that run until Ctrl-C: docs/terminal.md records them, test_servers.py runs them."""
ELSEWHERE = {"offline", "prefer", "reward-model", "compare", "labels", "export"}
"""Commands that docs/terminal.md records. The first three print by the same function as `sft`."""
SURROUNDINGS = ["40", "80", "200", "pipe", "NO_COLOR", "dumb", "cp1252", "ascii"]


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with three runs, one damaged, in a folder with a space and an umlaut."""
    folder = project.rename(project.with_name(FOLDER))
    monkeypatch.chdir(folder)
    (folder / "longer.py").write_text(STRATEGY)
    for name in ("eins", "zwei drei", "kaputt"):
        training(folder / "runs" / name, steps=2)
    (folder / "runs/kaputt/run.json").write_text("{")
    return folder


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, run: Run) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run a command in a surrounding; return the exit code and everything it printed."""

    def shown(command: str, surrounding: str) -> tuple[int, str]:
        encoding = surrounding if surrounding in ("cp1252", "ascii") else "utf-8"
        is_terminal = surrounding.isdigit() or surrounding in ("NO_COLOR", "dumb")
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
        monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "dumb" if surrounding == "dumb" else "xterm")
        monkeypatch.setenv("COLUMNS", surrounding if surrounding.isdigit() else "80")
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        if surrounding == "NO_COLOR":
            monkeypatch.setenv("NO_COLOR", "1")
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(command))
        stream.flush()
        return int(ended.value.code or 0), raw.getvalue().decode(encoding)

    yield shown
    monkeypatch.undo()


def squeezed(text: str) -> str:
    """Return the text without colours, line breaks and spaces, which a narrow screen changes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s", "", text)


def check_shown(
    code: int, screen: str, command: str, surrounding: str, facts: tuple[str, ...]
) -> None:
    assert code == 0, screen
    assert "Traceback" not in screen
    assert "\u2026" not in screen, "something was cut off"
    for fact in facts:
        assert squeezed(fact) in squeezed(screen), (fact, screen)
    if not surrounding.isdigit():
        assert "\x1b" not in screen, "a control sequence where plain lines were asked for"
        assert "\u2501" not in screen
    for line in screen.splitlines():  # a printed command can be copied as it is
        if (start := line.find("orbiter-train ")) >= 0 and FOLDER.partition(" ")[0] in line:
            assert FOLDER in " ".join(shlex.split(line[start:])), line


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_quick_commands_are_readable_in_every_surrounding(
    folder: Path, shown: Callable[..., tuple[int, str]], surrounding: str
) -> None:
    for command, facts in VERBS.values():
        code, screen = shown(command, surrounding)
        check_shown(code, screen, command, surrounding, facts)
    assert (folder / "gut ö.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("surrounding", ["40", "200", "cp1252"])
def test_commands_with_a_model_are_readable_in_every_surrounding(
    folder: Path, shown: Callable[..., tuple[int, str]], surrounding: str
) -> None:
    assert folder.name == FOLDER
    for command, facts in MODELS.values():
        code, screen = shown(command, surrounding)
        check_shown(code, screen, command, surrounding, facts)


def test_no_command_is_left_out() -> None:
    tried = {shlex.split(command)[0] for command, _ in (VERBS | MODELS).values()}
    assert tried | ENDLESS | ELSEWHERE == set(COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        "init file/neu",
        "data filter data.jsonl --min-reward 1 -o file/x.jsonl",
        "data merge data.jsonl eval.jsonl -o file/x.jsonl",
        "data dedup data.jsonl -o file/x.jsonl",
        "data split data.jsonl -o file/parts",
        "convert data.jsonl file/x.csv",
        "synth -c config.toml synth.out=file/x.jsonl",
        "evolve -c config.toml evolve.strategy=longer.py:Longer evolve.run_dir=file/run",
        "report runs/eins -o file/x.html",
        "runs compare runs/eins 'runs/zwei drei' --page file/x.html",
        "proxy --to http://127.0.0.1:9/v1 -o file/x.journal --port 0",
        "train -c config.toml --out file/run",
        "sft -c config.toml sft.model=tiny --out file/run",
    ],
)
def test_a_place_that_cannot_be_written_is_named(folder: Path, run: Run, command: str) -> None:
    (folder / "file").write_text("a file where a folder is needed")
    ran = run(*shlex.split(command))
    assert ran.code == ExitCode.STORAGE, (ran.out, ran.err)
    assert "file" in ran.err
    assert "Traceback" not in ran.err
    assert (folder / "file").read_text() == "a file where a folder is needed"
