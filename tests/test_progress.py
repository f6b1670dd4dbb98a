import logging
import re
import time
from collections.abc import Callable

import pytest

from orbiter.train.progress import FittingPieces, Progress, ProgressBar, make_progress, working


def test_without_a_terminal_an_update_is_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), make_progress("episodes", 2) as progress:
        assert type(progress) is Progress
        progress.update(1, "0 failed")
    assert caplog.messages == ["episodes 1/2  0 failed"]


def test_small_units_are_logged_at_intervals_and_the_last_one_always(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        progress = make_progress("items", 100, shown=False, every_seconds=1e9)
        for done in range(1, 101):
            progress.update(done)
    assert [message.strip() for message in caplog.messages] == ["items 1/100", "items 100/100"]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_bar_shows_title_count_and_time_at_every_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    detail = "reward 0.250  loss 0.1234  KL 0.0012  grad 1.50  length 120  1169 tok/s"
    with ProgressBar("GRPO", 400) as progress:
        progress.say("memory: about 1.0 GiB at the peak")
        progress.update(300, detail)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "memory: about 1.0 GiB" in shown.err
    assert "GRPO" in shown.err
    assert "300/400" in shown.err
    assert ":" in shown.err.rpartition("300/400")[2]
    assert "reward 0.250" in shown.err
    assert ("1169 tok/s" in shown.err) == (columns == 200)
    assert "…" not in shown.err


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (0, ""),
        (5, ""),
        (6, "KL 0.1"),
        (15, "KL 0.1"),
        (16, "KL 0.1  grad 1.5"),
        (99, "KL 0.1  grad 1.5"),
    ],
)
def test_a_narrow_terminal_drops_whole_facts(width: int, line: str) -> None:
    assert FittingPieces("KL 0.1  grad 1.5").fit(width) == line


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_plain_lines_replace_the_bar_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_progress("x", 1)) is ProgressBar
    monkeypatch.setenv(name, value)
    assert type(make_progress("x", 1)) is Progress


def test_one_slow_unit_is_logged_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orbiter.train.progress.LOG_SECONDS", 0.02)
    with caplog.at_level(logging.INFO), make_progress("evolving", 2, shown=False) as progress:
        progress.update(1, "best 3")
        wait_for(lambda: len(caplog.messages) >= 3)
    assert caplog.messages[0] == "evolving 1/2  best 3"
    assert caplog.messages[1] == "evolving 1/2  0 s so far  best 3"
    ended = len(caplog.messages)
    time.sleep(0.06)
    assert len(caplog.messages) == ended


def test_work_of_unknown_length_is_logged_at_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orbiter.train.progress.LOG_SECONDS", 0.02)
    with caplog.at_level(logging.INFO), working("reading {x}.jsonl") as count:
        wait_for(lambda: bool(caplog.messages))
        count(7)
        wait_for(lambda: caplog.messages[-1] == "reading {x}.jsonl: 7 items, 0 s")
    assert caplog.messages[0] == "reading {x}.jsonl: 0 s"


def test_quick_work_shows_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with caplog.at_level(logging.INFO):
        for is_terminal in (True, False):
            monkeypatch.setattr("sys.stderr.isatty", lambda shown=is_terminal: shown)
            with working("reading x") as count:
                count(1)
    assert (*capsys.readouterr(), caplog.messages) == ("", "", [])


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_work_of_unknown_length_moves_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("orbiter.train.progress.FIRST_SECONDS", 0.0)
    shown = ""
    with working("reading " + "long/" * 30 + "[red]{x}.jsonl") as count:
        count(7)
        for _ in range(1000):
            shown += capsys.readouterr().err
            if "7 items" in shown:
                break
            time.sleep(0.01)
    shown += capsys.readouterr().err
    assert "read" in shown
    assert "jsonl" in shown
    assert "7 items" in shown
    assert "0:00:0" in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= columns


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 10 seconds")
