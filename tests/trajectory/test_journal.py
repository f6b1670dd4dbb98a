from __future__ import annotations

import errno
import logging
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbiter.train.errors import StorageError
from orbiter.train.storage import Durability
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem, TrajectoryStrategy
from tests.trajectory.generated import items


def step(number: int, reward: float | None = 1.0) -> TrajectoryItem:
    state = "a long beginning that every turn of the episode has in common, as they do. " + (
        "turn " * number
    )
    return TrajectoryItem(state, f"a{number}", reward, episode_id="e", step=number)


def score_all(dataset: TrajectoryDataset) -> None:
    for episode in dict.fromkeys(item.episode_id for item in dataset.waiting):
        if episode is not None:
            dataset.assign_reward(episode, 1.5, 0.5)


def reopened(path: Path) -> tuple[list[TrajectoryItem], list[TrajectoryItem]]:
    with TrajectoryDataset(path=path) as dataset:
        return list(dataset), dataset.waiting


@pytest.mark.parametrize("durability", ["process", "group", "disk"])
def test_a_data_set_on_disk_is_the_same_after_reopening(
    durability: Durability, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "folder" / "j"
    with TrajectoryDataset(path=path, durability=durability) as dataset:
        dataset.extend([step(0), step(1), step(2, None)])
    with TrajectoryDataset(path=path, durability=durability) as dataset:
        assert list(dataset) == [step(0), step(1)]
        assert dataset.waiting == [step(2, None)]
        dataset.capture(step(3, None))
        dataset.assign_reward("e", 4.0, 0.5)
        dataset.capture(step(4))
    expected = [step(0), step(1), step(2, 2.0), step(3, 4.0), step(4)]
    assert reopened(path) == (expected, [])


@settings(max_examples=60)
@given(
    sessions=st.lists(st.lists(items(scored=False), max_size=4), max_size=3), score=st.booleans()
)
def test_any_items_survive_any_number_of_reopenings(
    sessions: list[list[TrajectoryItem]],
    score: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    memory = TrajectoryDataset()
    for session in sessions:
        with TrajectoryDataset(path=path) as disk:
            for dataset in (memory, disk):
                dataset.extend(session)
                if score:
                    score_all(dataset)
    kept, waiting = reopened(path)
    assert sorted(item.id for item in kept) == sorted(item.id for item in memory)
    assert [item.id for item in waiting] == [item.id for item in memory.waiting]


def test_reopening_does_not_ask_the_strategy_again(tmp_path: Path) -> None:
    class Halve(TrajectoryStrategy):
        def should_capture(self, item: TrajectoryItem) -> bool:
            return item.reward is not None and item.reward >= 0.5

        def process(self, item: TrajectoryItem) -> TrajectoryItem:
            assert item.reward is not None
            return replace(item, reward=item.reward / 2, action="other")

    path = tmp_path / "j"
    with TrajectoryDataset(Halve(), path) as dataset:
        dataset.extend([step(0, 1.0), step(1, 0.1), step(2, None), step(3, None)])
        dataset.assign_reward("e", 1.0, 0.4)
        kept = list(dataset)
    assert [item.reward for item in kept] == [0.5, 0.5]
    with TrajectoryDataset(Halve(), path) as dataset:
        assert (list(dataset), dataset.waiting) == (kept, [])


def test_turns_of_an_episode_are_written_once(tmp_path: Path) -> None:
    path, turns = tmp_path / "j", 50
    with TrajectoryDataset(path=path) as dataset:
        state, full = "", 0
        for number in range(turns):
            state += f"turn {number}: " + f"{number % 10}" * 1000
            full += len(state)
            dataset.capture(TrajectoryItem(state, "go on", 0.0, episode_id="e", step=number))
    assert path.stat().st_size * 15 < full


def test_logprobs_may_repeat_where_tokens_do_not(tmp_path: Path) -> None:
    def turn(number: int, token_ids: list[int]) -> TrajectoryItem:
        return TrajectoryItem(
            "a long beginning " * 50, "a", 1.0, episode_id="e", step=number,
            token_ids=token_ids, logprobs=[0.0, -0.5],
        )  # fmt: skip

    path = tmp_path / "j"
    with TrajectoryDataset(path=path) as dataset:
        dataset.extend([turn(0, [1, 2]), turn(1, [3, 4])])
    assert reopened(path) == ([turn(0, [1, 2]), turn(1, [3, 4])], [])


def test_a_turn_after_a_reopening_takes_over_from_the_whole_turn_before(tmp_path: Path) -> None:
    old, new = [1] * 300, [2] * 300
    prompts = [old, old + new, [*new, 3]]
    turns = [
        TrajectoryItem("s", "a", 1.0, episode_id="e", step=number, prompt_token_ids=prompt)
        for number, prompt in enumerate(prompts)
    ]
    path = tmp_path / "j"
    with TrajectoryDataset(path=path) as dataset:
        dataset.extend(turns[:2])
    with TrajectoryDataset(path=path) as dataset:
        dataset.capture(turns[2])
        assert list(dataset) == turns
    assert reopened(path) == (turns, [])


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_torn_record_is_moved_aside_and_reported(
    cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    with TrajectoryDataset(path=path) as dataset:
        dataset.capture(step(0))
        whole = path.stat().st_size
        dataset.capture(step(1))
    torn = path.read_bytes()[whole:][:cut]
    path.write_bytes(path.read_bytes()[:whole] + torn)
    with caplog.at_level(logging.WARNING), TrajectoryDataset(path=path) as dataset:
        assert list(dataset) == [step(0)]
        assert dataset.recovery is not None
        assert dataset.recovery.torn_bytes == len(torn)
        dataset.capture(step(1))
    assert "moved to" in caplog.text
    assert torn in path.with_name("j.torn").read_bytes()
    assert reopened(path)[0] == [step(0), step(1)]


def test_a_tail_that_a_loss_of_power_filled_with_noise_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with TrajectoryDataset(path=path) as dataset:
        dataset.capture(step(0))
    path.write_bytes(path.read_bytes() + b"\0\0\0\n\0\0")
    assert reopened(path)[0] == [step(0)]


def test_every_flipped_byte_before_the_tail_is_found(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with TrajectoryDataset(path=path) as dataset:
        dataset.extend([step(0), step(1)])
    good = path.read_bytes()
    first, second = good.index(b"\n") + 1, good.rindex(b"\n", 0, -1) + 1
    for at in range(0, second, 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(StorageError, match=f"{path}(:2: the checksum| is not a journal)"):
            TrajectoryDataset(path=path)
        assert len(path.read_bytes()) == len(good)
    assert first < second


@pytest.mark.parametrize("content", [b'{"state": "s"}', b'[{"state": "s"}]\n', b"\x89PNG"])
def test_a_file_that_is_no_journal_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=f"{path} is not a journal .*from_jsonl"):
        TrajectoryDataset(path=path)
    assert path.read_bytes() == content
    with pytest.raises(StorageError, match="is not a file"):
        TrajectoryDataset(path=tmp_path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with TrajectoryDataset(path=path):  # noqa: SIM117 - the second must fail inside the first
        with pytest.raises(StorageError, match=r"is already open in this process: close\(\)"):
            TrajectoryDataset(path=path)
    assert reopened(path) == ([], [])


def test_a_closed_data_set_can_be_read_but_not_written(tmp_path: Path) -> None:
    dataset = TrajectoryDataset(path=tmp_path / "j")
    dataset.capture(step(0))
    dataset.close()
    dataset.close()
    assert list(dataset) == [step(0)]
    with pytest.raises(StorageError, match="closed"):
        dataset.capture(step(1))
    assert list(dataset) == [step(0)]


def _capture_in_child(dataset: TrajectoryDataset, answer: multiprocessing.SimpleQueue[str]) -> None:
    try:
        dataset.capture(step(1))
    except StorageError as error:
        answer.put(str(error))


def test_a_forked_child_is_told_to_open_its_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    with TrajectoryDataset(path=tmp_path / "j") as dataset:
        child = context.Process(target=_capture_in_child, args=(dataset, answer), daemon=True)
        child.start()
        assert "give every process its own journal" in answer.get()
        child.join()


def full_disk(after: int) -> Callable[[int, bytes], int]:
    """Write as the system does on a disk with room for `after` more bytes."""
    write, room = os.write, [after]

    def limited(handle: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(handle, data[: room[0]])
        room[0] -= written
        return written

    return limited


@pytest.mark.parametrize("room", [0, 1, 50, 100])
def test_a_full_disk_is_named_and_costs_only_the_item_that_did_not_fit(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    with TrajectoryDataset(path=path) as dataset:
        dataset.capture(step(0))
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full_disk(room))
            with pytest.raises(
                StorageError, match=f"disk is full: cannot write {path} .*bytes are needed"
            ):
                dataset.capture(step(1))
        assert list(dataset) == [step(0)]
        dataset.capture(step(2))
    assert reopened(path)[0] == [step(0), step(2)]


def test_after_a_failed_sync_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "j"
    dataset = TrajectoryDataset(path=path, durability="disk")
    dataset.capture(step(0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(StorageError, match="Input/output error"):
            dataset.capture(step(1))
    with pytest.raises(StorageError, match="close this data set and open it again"):
        dataset.capture(step(2))
    dataset.close()
    assert reopened(path)[0][0] == step(0)


def test_a_loss_of_power_at_any_moment_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash after every system call; of what was not synced, any part of the file may survive."""
    path, events = tmp_path / "j", [(0, 0, 0)]
    write, fsync = os.write, os.fsync
    acknowledged = 0

    def watched_write(handle: int, data: bytes) -> int:
        written = write(handle, data)
        events.append((path.stat().st_size, events[-1][1], acknowledged))
        return written

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        if path.exists():
            size = path.stat().st_size
            events.append((size, size, acknowledged))

    with TrajectoryDataset(path=path, durability="disk") as dataset, monkeypatch.context() as patch:
        patch.setattr(os, "write", watched_write)
        patch.setattr(os, "fsync", watched_fsync)
        for number in range(40):
            dataset.capture(step(number, None if number % 8 == 5 else 1.0))
            acknowledged += 1
            if number % 8 == 7:
                dataset.assign_reward("e", 1.0)
        order = [item.step for item in dataset]
    data = path.read_bytes()
    crashed = tmp_path / "crashed"
    for size, synced, safe in events[1:]:
        lost = size - synced
        for survived in {0, 1, lost // 2, max(0, lost - 1), lost}:
            for noise in (b"", b"\0" * (lost - survived)):
                crashed.write_bytes(data[: synced + survived] + noise)
                if synced:
                    kept, waiting = reopened(crashed)
                    steps = sorted(item.step or 0 for item in [*kept, *waiting])
                    assert steps[:safe] == list(range(safe))
                    assert len(steps) <= safe + 1
    assert sorted(number or 0 for number in order) == list(range(40))
