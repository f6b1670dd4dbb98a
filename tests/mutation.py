"""Plants bugs in a package and runs its tests on each: the tests must notice every one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import Phase, settings

SOURCE = Path(__file__).parents[1] / "src"


class Bug(NamedTuple):
    """A line as it stands, and as somebody in a hurry would have written it."""

    what: str
    file: str
    right: str
    wrong: str


class Catch:
    """Remembers the first test that failed."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a failure."""
        if report.failed and not self.name:
            self.name = report.nodeid.rpartition("::")[2].partition("[")[0]


def unplantable(bugs: Sequence[Bug], *, package: str) -> list[str]:
    """Return the bugs whose line the source no longer has, or has already as the bug has it."""
    root = SOURCE / "orbiter" / "train" / package
    return [
        bug.what
        for bug in bugs
        if bug.right == bug.wrong
        or not (path := root / f"{bug.file}.py").is_file()
        or bug.right not in path.read_text(encoding="utf-8")
    ]


def hunt(bug: Bug | None, folder: Path, tests: Path, package: str) -> str:
    """Return the name of a test that a bug makes fail, or "" where all stay green."""
    source = shutil.copytree(SOURCE, folder / "src")
    if bug is not None:
        path = source / "orbiter" / "train" / package / f"{bug.file}.py"
        text = path.read_text(encoding="utf-8")
        if bug.right not in text:
            return "NOT PLANTED: the line is gone"
        path.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")
    sys.path.insert(0, str(source))
    catch = Catch()
    options = ["-x", "-q", "-m", "not nightly", "--hypothesis-profile=hunt"]
    if bug is not None:  # the tests of that file are the likeliest to notice, so they run first
        name = f"test_{Path(bug.file).name}.py"
        options += map(str, [tests / name] if (tests / name).exists() else _elsewhere(name))
    options.append(str(tests))
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(options, plugins=[catch])
    return catch.name


def _elsewhere(name: str) -> list[Path]:
    return sorted(Path(__file__).parent.glob(f"*/{name}"))


def forked(bug: Bug | None, tests: Path, package: str) -> str:
    """Hunt in a process of its own, which finds torch already imported."""
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "answer"
        pid = os.fork()
        if pid == 0:
            answer.write_text(hunt(bug, Path(name), tests, package), encoding="utf-8")
            os._exit(0)
        os.waitpid(pid, 0)
        return answer.read_text(encoding="utf-8") if answer.exists() else "NO ANSWER"


def hunt_all(bugs: Sequence[Bug], tests: Path, *, package: str) -> int:
    """Hunt all bugs, or those whose file or name is on the command line; print one line each.

    Returns the number that survived.

    Args:
        bugs: The bugs; their files are below `package`.
        tests: The folder of the tests that should notice them.
        package: The package of `orbiter.train`.
    """
    wanted = set(sys.argv[1:])
    hunted = [bug for bug in bugs if not wanted or wanted & {bug.file, bug.what}]
    if not hunted:
        raise SystemExit(f"no bug is in {sys.argv[1:]}; files: {sorted({b.file for b in bugs})}")
    torch.set_num_threads(1)
    settings.register_profile(
        "hunt", derandomize=True, deadline=None, database=None, phases=[Phase.generate]
    )
    if name := forked(None, tests, package):  # the control: without a bug, all must be green
        raise SystemExit(f"red without a bug: {name}")
    survived = []
    for bug in hunted:
        name = forked(bug, tests, package)
        if not name.startswith("test_"):
            survived.append(bug.what)
        sys.stdout.write(f"{bug.what:40} {name or 'SURVIVED'}\n")
        sys.stdout.flush()
    sys.stdout.write(json.dumps({"bugs": len(hunted), "survived": survived}) + "\n")
    return len(survived)
