import errno
import os
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import StorageError
from orbiter.train.storage import AppendLog, Durability, FileLock, atomic_write, read_records
from tests.children import run_child


def test_an_atomic_write_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "data.json"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        break_off_half_way(target)
    assert target.read_bytes() == b"old"
    with atomic_write(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["data.json"]


def break_off_half_way(target: Path) -> None:
    with atomic_write(target) as file:
        file.write(b"half of the new")
        file.flush()
        raise ZeroDivisionError


@given(st.lists(st.binary().map(lambda b: b.replace(b"\n", b" "))))
def test_records_come_back_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    with AppendLog(path) as log:
        for record in records[: len(records) // 2]:
            log.append(record)
    with AppendLog(path) as log:
        assert log.recovered.records == len(records) // 2
        for record in records[len(records) // 2 :]:
            log.append(record)
    assert list(read_records(path)) == records


def test_a_torn_tail_is_moved_aside_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthr")
    assert list(read_records(path)) == [b"one", b"two"]
    with AppendLog(path) as log:
        assert log.recovered == (2, 3)
        log.append(b"four")
    assert list(read_records(path)) == [b"one", b"two", b"four"]
    assert (tmp_path / "log.torn").read_bytes() == b"thr\n"


def test_a_second_writer_is_refused_by_name_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with AppendLog(path):
        told = pytest.raises(StorageError, match=f"held by process {os.getpid()}")
        with told:
            AppendLog(path)
    code = (
        "import os, sys; from orbiter.train.storage import AppendLog;"
        "log = AppendLog(sys.argv[1]); log.append(b'from the dead'); os.kill(os.getpid(), 9)"
    )
    run_child([sys.executable, "-c", code, str(path)])
    with AppendLog(path) as log:
        assert log.recovered.records == 1


def test_a_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.release()
    lock.release()
    FileLock(tmp_path / "lock").release()


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with AppendLog(tmp_path / "log") as log:
        monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:3])))
        log.append(b"a long record")
        monkeypatch.undo()
    assert list(read_records(tmp_path / "log")) == [b"a long record"]


def test_group_and_disk_sync_when_they_promise_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    counts: dict[Durability, int] = {}
    for durability in get_args(Durability):
        with AppendLog(tmp_path / durability, durability=durability) as log:
            synced.clear()
            for _ in range(130):
                log.append(b"x")
            counts[durability] = len(synced)
    assert counts == {"process": 0, "group": 2, "disk": 130}


def test_a_full_disk_is_named_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with AppendLog(tmp_path / "log") as log:
        log.append(b"kept")
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(
            StorageError, match=r"disk is full: cannot write .*log \(18 bytes are needed"
        ):
            log.append(b"lost, and said so")
        monkeypatch.undo()
        log.append(b"after")
    assert list(read_records(tmp_path / "log")) == [b"kept", b"after"]


def test_a_write_that_failed_half_way_leaves_no_half_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    calls = 0

    def half_then_full(handle: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return write(handle, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with AppendLog(tmp_path / "log") as log:
        log.append(b"kept")
        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(StorageError):
            log.append(b"a long record")
        monkeypatch.undo()
        log.append(b"after")
    assert list(read_records(tmp_path / "log")) == [b"kept", b"after"]


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a file"):
        AppendLog(tmp_path / "." / "")


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "other content", "folder"])
def test_a_lock_file_that_leads_elsewhere_is_refused_and_left_as_it_is(
    tmp_path: Path, kind: str
) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("x" * 20)
    lock = tmp_path / "a.jsonl.lock"
    if kind == "symbolic link":
        lock.symlink_to(precious)
    elif kind == "hard link":
        lock.hardlink_to(precious)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.write_text("y" * 4000)
    with pytest.raises(StorageError, match=r"a\.jsonl\.lock .* remove it"):
        AppendLog(tmp_path / "a.jsonl")
    assert precious.read_text() == "x" * 20
    assert kind != "other content" or len(lock.read_text()) == 4000


def test_a_link_that_leads_nowhere_makes_no_file_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.lock").symlink_to(tmp_path / "new.txt")
    with pytest.raises(StorageError, match="is a link"):
        AppendLog(tmp_path / "a.jsonl")
    assert not (tmp_path / "new.txt").exists()


def test_an_opening_that_fails_lets_go_of_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.mkdir()
    with pytest.raises(StorageError, match="not a file"):
        AppendLog(path)
    path.rmdir()
    AppendLog(path).close()
