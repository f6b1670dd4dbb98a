import logging

import pytest

from orbiter.train.engine.progress import Bar, Quiet, line_of, make_progress


def test_a_step_is_one_line_of_what_was_measured() -> None:
    row = {"reward": 0.5, "loss": -1e-9, "kl": 0.01, "length": 12.4, "tokens_per_second": 901.0}
    assert line_of(row) == "reward 0.500  loss -0.0000  KL 0.0100  length 12  901 tok/s"


def test_without_a_terminal_only_the_log_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), make_progress("GRPO", 2) as progress:
        assert type(progress) is Quiet
        progress.step(1, {"reward": 0.25})
    assert caplog.messages == ["step 1/2  reward 0.250"]


def test_a_terminal_sees_a_bar_with_the_last_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Bar("GRPO", 4, 0) as progress:
        progress.say("memory: about 1.0 GiB at the peak")
        progress.step(3, {"reward": 0.25})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "memory: about 1.0 GiB" in shown.err
    assert "3/4" in shown.err
    assert "reward 0.250" in shown.err
