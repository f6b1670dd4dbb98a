import logging

import pytest

from orbiter.train.engine.progress import line_of
from orbiter.train.progress import make_progress


def test_a_step_is_one_line_of_what_was_measured() -> None:
    row = {"reward": 0.5, "loss": -1e-9, "kl": 0.01, "length": 12.4, "tokens_per_second": 901.0}
    assert line_of(row) == "reward 0.500  loss -0.0000  KL 0.0100  length 12  901 tok/s"


def test_without_a_terminal_every_step_is_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), make_progress("GRPO", 2) as progress:
        progress.update(1, line_of({"reward": 0.25}))
    assert caplog.messages == ["GRPO 1/2  reward 0.250"]
