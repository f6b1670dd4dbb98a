import contextlib
import logging

import pytest

from orbiter.train import VeRLConfig, VeRLTrainer
from orbiter.train.engine.progress import Report, answering, line_of, shifted
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


def test_answers_are_counted_in_tokens_and_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), answering(4, 10) as report:
        shifted(report, 2, 10)(7, 0)
        report(40, 4)
        shifted(None, 1, 1)(1, 1)
    assert caplog.messages == ["answering 27/40  2 of 4 answers", "answering 40/40  4 of 4 answers"]


async def test_progress_never_goes_back_and_ends_with_all_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []

    def remember(
        answers: int, max_tokens: int, *, wanted: bool
    ) -> contextlib.AbstractContextManager[Report]:
        assert (answers, max_tokens, wanted) == (6, 5, True)
        return contextlib.nullcontext(lambda tokens, finished: seen.append((tokens, finished)))

    monkeypatch.setattr("orbiter.train.engine.trainer.answering", remember)
    trainer = VeRLTrainer(VeRLConfig(model="tiny", max_response_length=5))
    answers = await trainer.generate(["one", "two", "three"], samples=2, temperature=1.0)
    assert len(answers) == 6
    assert seen == sorted(seen)
    assert seen[-1] == (30, 6)
