"""Every way to damage a journal is found, and a crash is not taken for damage."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import StorageError
from orbiter.train.evolution.journal import FileRunJournal as EvolutionJournal
from orbiter.train.evolution.journal import Trial
from orbiter.train.evolution.strategy import Score
from orbiter.train.resume_journal import ResumeJournal, read_journal
from orbiter.train.runlog import RunLog, read_run
from orbiter.train.storage import GROUP_SIZE, AppendLog
from orbiter.train.synthesis.journal import FileAnswerJournal as SynthesisJournal
from orbiter.train.synthesis.journal import Made
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from tests.children import run_child
from tests.journals import without_checksum

LINES = 6


def evolution(folder: Path) -> None:
    journal = EvolutionJournal(folder, {"seed": 0})
    for number in range(len(journal.trials), LINES - 1):
        journal.write_trial(Trial(f"initial {number}", 0, Score(number / 8), None))
    journal.close()


def synthesis(folder: Path) -> None:
    journal = SynthesisJournal(folder, {"seed": 0})
    known = sum(journal.made(number) is not None for number in range(LINES - 1))
    for number in range(known, LINES - 1):
        journal.keep(Made.of(number, 1, [TrajectoryItem("s", f"a{number}")], [1]))
    journal.close()


def metrics(folder: Path) -> None:
    known = len(read_run(folder).metrics) if folder.joinpath("run.json").exists() else 0
    with RunLog(folder, {"seed": 0}) as log:
        for step in range(known, LINES):
            log.write(step, {"loss": 1 / (step + 1)})


def trajectories(folder: Path) -> None:
    with TrajectoryDataset(path=folder / "data.journal") as dataset:
        for number in range(len(dataset), LINES - 1):
            dataset.capture(TrajectoryItem("s", f"a{number}", 1.0))


JOURNALS: dict[str, Callable[[Path], None]] = {
    "evolution.jsonl": evolution,
    "synthesis.jsonl": synthesis,
    "metrics.jsonl": metrics,
    "data.journal": trajectories,
}
journals = pytest.mark.parametrize("name", JOURNALS)


def written(name: str, folder: Path) -> tuple[Path, list[bytes]]:
    JOURNALS[name](folder)
    path = folder / name
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == LINES
    return path, lines


def doubled(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[: at + 1], *lines[at:]]


def swapped(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]


def removed(lines: list[bytes], at: int) -> list[bytes]:
    return lines[:at] + lines[at + 1 :]


def foreign(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[: at + 1], b'{"step":3,"loss":0.5}\n', *lines[at + 1 :]]


@pytest.mark.parametrize("damage", [doubled, swapped, removed, foreign])
@journals
def test_lines_that_were_repeated_moved_removed_or_added_are_named(
    name: str, damage: Callable[[list[bytes], int], list[bytes]], tmp_path: Path
) -> None:
    path, lines = written(name, tmp_path)
    for at in range(LINES - 1):
        path.write_bytes(b"".join(damage(lines, at)))
        with pytest.raises(StorageError, match=rf"{name}(:\d+| is not a journal)"):
            JOURNALS[name](tmp_path)
    path.write_bytes(b"".join(doubled(lines, LINES - 1)))
    with pytest.raises(StorageError, match=rf"{name}:{LINES + 1}"):
        JOURNALS[name](tmp_path)


@journals
def test_every_flipped_bit_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    path, lines = written(name, tmp_path)
    good, refused = b"".join(lines), 0
    for at in range(0, len(good) - 1, 3):
        flipped = good[at] ^ (1 << at % 7)
        path.write_bytes(good[:at] + bytes([flipped]) + good[at + 1 :])
        line = good.count(b"\n", 0, at) + 1
        with pytest.raises(StorageError, match=rf"{name}(:({line}|{line + 1})\b| is not a)"):
            JOURNALS[name](tmp_path)
        refused += 1
    assert refused > 90


@journals
def test_a_torn_last_line_is_a_crash_and_is_written_again(name: str, tmp_path: Path) -> None:
    path, lines = written(name, tmp_path)
    good = b"".join(lines)
    for cut in (1, 7, len(lines[-1]) - 1):
        path.write_bytes(good[:-cut])
        JOURNALS[name](tmp_path)
        assert path.read_bytes() == good
        assert path.with_name(name + ".torn").read_bytes().endswith(lines[-1][:-cut] + b"\n")


@pytest.mark.parametrize("name", ["evolution.jsonl", "synthesis.jsonl", "metrics.jsonl"])
def test_a_file_without_checksums_is_continued_with_them(name: str, tmp_path: Path) -> None:
    path, lines = written(name, tmp_path)
    old = [without_checksum(line) + b"\n" for line in lines]
    path.write_bytes(b"".join(old[:3]))
    JOURNALS[name](tmp_path)
    mixed = path.read_bytes().splitlines(keepends=True)
    assert mixed[:3] == old[:3]
    assert [b'"_crc":"' in line for line in mixed] == [False] * 3 + [True] * (LINES - 3)
    assert [json.loads(line.record) for line in read_journal(path)] == list(map(json.loads, old))
    JOURNALS[name](tmp_path)
    path.write_bytes(b"".join(removed(mixed, 1)))  # the first checksum covers the old lines
    with pytest.raises(StorageError, match=rf"{name}:3 is not a record as it was written"):
        JOURNALS[name](tmp_path)


def test_a_trajectory_journal_of_version_1_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "data.journal"
    path.write_bytes(
        b'd9973a07 {"journal":"orbiter.train.trajectory","version":1}\n'
        b'7abd3fad {"entry":[{"state":"s","action":"a0","reward":1.0},-1,[]]}\n'
    )
    for _ in range(2):
        trajectories(tmp_path)
    with TrajectoryDataset(path=path) as dataset:
        assert [item.action for item in dataset] == [f"a{number}" for number in range(LINES - 1)]


@settings(max_examples=50)
@given(
    records=st.lists(
        st.dictionaries(
            st.text() | st.just("_crc"),
            st.none() | st.text() | st.floats(allow_nan=False),
            min_size=1,
        ),
        max_size=6,
    ),
    cut=st.integers(0, 6),
)
def test_any_records_come_back_also_after_a_cut(
    records: list[dict[str, object]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    encoded = [json.dumps(record).encode() for record in records]
    for _ in range(2):
        journal = ResumeJournal(path)
        for line in list(journal.replay()):
            if line.number == cut + 1:
                journal.cut(line)
        for record in encoded[min(cut, len(records)) if _ else 0 :]:
            journal.append(record)
        journal.close()
    assert [line.record for line in read_journal(path)] == encoded


@pytest.mark.parametrize("link", [os.symlink, os.link])
@journals
def test_a_second_writer_that_comes_through_a_link_is_refused(
    name: str, link: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    path, lines = written(name, tmp_path)
    (tmp_path / "other").mkdir()
    link(path, tmp_path / "other" / name)
    if name == "metrics.jsonl":
        (tmp_path / "other/run.json").write_bytes((tmp_path / "run.json").read_bytes())
    # A data set may be reached by a link while nobody writes it; the others never are.
    refusals = f"{name} (is being written by another process|is a.* link|has a second name)"
    with AppendLog(path), pytest.raises(StorageError, match=refusals):
        JOURNALS[name](tmp_path / "other")
    assert path.read_bytes() == b"".join(lines)


@journals
def test_a_second_writer_is_refused_after_the_lock_file_was_removed(
    name: str, tmp_path: Path
) -> None:
    path, lines = written(name, tmp_path)
    with AppendLog(path):
        path.with_name(name + ".lock").unlink()
        with pytest.raises(StorageError, match="since its lock file was removed"):
            JOURNALS[name](tmp_path)
        code = "import sys; from orbiter.train.storage import AppendLog; AppendLog(sys.argv[1])"
        child = run_child([sys.executable, "-c", code, str(path)])
        assert child.returncode == 1
        assert "since its lock file was removed" in child.stderr
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("change", ["renamed", "removed", "replaced"])
def test_a_journal_that_lost_its_name_while_in_use_is_named(change: str, tmp_path: Path) -> None:
    path = tmp_path / "data.journal"
    dataset = TrajectoryDataset(path=path)
    dataset.capture(TrajectoryItem("s", "a", 1.0))
    if change == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "elsewhere")
    if change == "replaced":
        path.write_bytes(b"")
    with pytest.raises(StorageError, match=r"data\.journal is no longer the file that this proce"):
        dataset.capture(TrajectoryItem("s", "b", 1.0))
    assert len(dataset) == 1
    dataset.close()


def test_a_rename_in_a_tight_loop_is_found_within_a_group_of_records(tmp_path: Path) -> None:
    def append_until_refused() -> None:
        for _ in range(GROUP_SIZE):
            log._appended = float("inf")  # as if there never was a pause
            log.append(b"x")

    log = AppendLog(tmp_path / "log")
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="no longer the file"):
        append_until_refused()
    log.close()
    assert (tmp_path / "elsewhere").read_bytes() == b"x\n" * (GROUP_SIZE - 1)


def test_closing_a_renamed_log_says_so_once_and_releases_it(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log")
    log.append(b"x")
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="no longer the file"):
        log.close()
    log.close()
    AppendLog(tmp_path / "elsewhere").close()


def test_threads_that_append_at_once_keep_the_chain(tmp_path: Path) -> None:
    journal = ResumeJournal(tmp_path / "journal.jsonl")

    def add(writer: int) -> None:
        for number in range(200):
            journal.append(json.dumps({"writer": writer, "number": number}).encode())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    journal.close()
    records = [json.loads(line.record) for line in read_journal(tmp_path / "journal.jsonl")]
    assert len(records) == 8 * 200
    for writer in range(8):
        assert [r["number"] for r in records if r["writer"] == writer] == list(range(200))
