"""Nothing in somebody else's folder makes us read, write or wait outside of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryDataset
from orbiter.train.cli.app import main
from orbiter.train.contained import inside
from orbiter.train.errors import StorageError
from orbiter.train.evolution.journal import FileRunJournal as EvolutionJournal
from orbiter.train.evolution.strategies.population import PopulationTraining, Trainee
from orbiter.train.formats.registry import read, write
from orbiter.train.report import write_report
from orbiter.train.runlog import RunLog, read_run
from orbiter.train.synthesis.journal import FileAnswerJournal as SynthesisJournal
from orbiter.train.trajectory import TrajectoryItem
from tests.report.folders import training

SECRET = "what is in my thesis"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")


@pytest.fixture(autouse=True)
def at_most_20_seconds() -> Iterator[None]:
    """End a test that waits for a pipe."""
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("it hangs")))
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    path = tmp_path / "thesis.txt"
    path.write_text(f"{SECRET}\n" * 100)
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    training(tmp_path / "theirs" / "run", steps=3)
    return tmp_path / "theirs" / "run"


def command(*words: str | Path) -> None:
    """Run a command; raise what it reports."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    if ended.value.code:
        raise StorageError(f"exit {ended.value.code}")


READERS: dict[str, Callable[[Path], object]] = {
    "read_run": read_run,
    "report": write_report,
    "runs compare": lambda folder: command("runs", "compare", folder, folder),
    "runs resume": lambda folder: command("runs", "resume", folder),
    "eval --run": lambda folder: command("eval", "--run", folder),
    "RunLog": lambda folder: RunLog(folder, resume_from=1).close(),
    "evolution": lambda folder: EvolutionJournal(folder, {}),
    "synthesis": lambda folder: SynthesisJournal(folder, {}),
}
FILES = (
    "run.json", "metrics.jsonl", "samples.jsonl", "times.jsonl", "environment.json", "story.json",
    "result.json", "config.toml", "evolution.jsonl", "synthesis.jsonl", "metrics.jsonl.lock",
    "metrics.jsonl.torn",
)  # fmt: skip


def to_file(path: Path, thesis: Path) -> None:
    path.symlink_to(thesis)


def to_file_relative(path: Path, thesis: Path) -> None:
    path.symlink_to("../../thesis.txt")


def to_device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


def to_link(path: Path, thesis: Path) -> None:
    """A link to a link inside, which leaves the folder."""
    path.with_name("inner").symlink_to(thesis)
    path.symlink_to("inner")


def pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


TRAPS = (to_file, to_file_relative, to_device, to_link, pipe)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", FILES)
def test_a_trap_in_a_run_s_folder_is_refused_and_touches_nothing(
    theirs: Path, thesis: Path, reader: str, trap: Callable[[Path, Path], None], name: str
) -> None:
    before = thesis.read_bytes()
    (theirs / name).unlink(missing_ok=True)
    trap(theirs / name, thesis)
    with pytest.raises(StorageError) as refused:
        READERS[reader](theirs)
    assert SECRET not in str(refused.value)
    assert thesis.read_bytes() == before


@pytest.mark.parametrize("name", FILES[:4])
def test_a_hard_link_is_never_written(theirs: Path, thesis: Path, name: str) -> None:
    before = thesis.read_bytes()
    (theirs / name).unlink()
    (theirs / name).hardlink_to(thesis)
    with pytest.raises(StorageError, match="hard link"):
        RunLog(theirs, resume_from=1)
    assert thesis.read_bytes() == before


def test_runs_list_names_a_trap_and_lists_the_others(
    theirs: Path, thesis: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(theirs.parent / "good", steps=2)
    (theirs / "metrics.jsonl").unlink()
    os.mkfifo(theirs / "metrics.jsonl")
    command("runs", "list", theirs.parent)
    out = capsys.readouterr().out
    assert f"damaged: {theirs}" in out
    assert str(theirs.parent / "good") in out


def test_a_report_does_not_follow_a_link_to_other_runs(theirs: Path, tmp_path: Path) -> None:
    training(tmp_path / "private", steps=2, words=SECRET)
    (theirs / "more").symlink_to(tmp_path / "private")
    assert SECRET not in write_report(theirs).read_text()


def test_links_inside_a_folder_stay_possible(theirs: Path) -> None:
    (theirs / "times.jsonl").rename(theirs / "real.jsonl")
    (theirs / "times.jsonl").symlink_to("real.jsonl")
    assert read_run(theirs).metrics


OUTSIDE: list[Any] = [
    "../x", "a/../../x", "/etc/passwd", "", ".." , "\0", "c:x", "a\\b", None, 5, ["x"], {"a": 1},
    "x" * 256, "é" * 128, "a/" * 4000, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_in_data_cannot_leave_its_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(StorageError, match=r"m\.json names .* not a file inside"):
        inside(tmp_path, name, "m.json")


def test_a_name_in_data_cannot_leave_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "way").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="not a file inside"):
        inside(tmp_path / "folder", "way/x", "m.json")
    assert inside(tmp_path / "folder", "a/b", "m.json") == tmp_path / "folder" / "a" / "b"


@pytest.mark.parametrize("name", ["../secret.arrow", "/dev/zero", 5, None])
def test_a_data_set_s_tables_are_inside_its_folder(tmp_path: Path, name: object) -> None:
    pytest.importorskip("datasets")
    write([TrajectoryItem("s", "a")], tmp_path / "set", "datasets")
    (tmp_path / "secret.arrow").write_bytes(next((tmp_path / "set").glob("*.arrow")).read_bytes())
    state = tmp_path / "set" / "state.json"
    described = json.loads(state.read_text())
    described["_data_files"] = [{"filename": name}]
    state.write_text(json.dumps(described))
    with pytest.raises(StorageError, match="not a file inside"):
        list(read(tmp_path / "set"))


@pytest.mark.parametrize("start", ["../elsewhere", "/elsewhere"])
async def test_a_journal_cannot_start_a_training_from_elsewhere(tmp_path: Path, start: str) -> None:
    def never(*_: object) -> float:
        raise AssertionError("it was trained")

    from orbiter.train.evolution.strategies.space import Float

    training = PopulationTraining(never, {"x": Float(0.0, 1.0)}, tmp_path / "checkpoints")
    with pytest.raises(StorageError, match="not a file inside"):
        await training.evaluate(Trainee({"x": 0.5}, 0, 1, start))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_no_file_of_data(device: str) -> None:
    for load in (
        TrajectoryDataset.from_jsonl,
        TrajectoryDataset.from_json,
        TrajectoryDataset.from_csv,
    ):
        with pytest.raises(StorageError, match="it is a device"):
            load(device)
