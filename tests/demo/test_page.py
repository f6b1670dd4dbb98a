from __future__ import annotations

import re
from pathlib import Path

from orbiter.train.demo.outcome import Exam, Outcome, Question
from orbiter.train.demo.page import chosen, write_page
from orbiter.train.demo.plan import Plan

HOSTILE = "<script>alert('x')</script>&\"</code>"


def an_outcome() -> Outcome:
    outcome = Outcome(
        held_out=[Question(f"q{i}{HOSTILE}", HOSTILE, HOSTILE, HOSTILE) for i in range(4)],
        curves={HOSTILE: [(1, 0.1), (2, 0.4)]},
        model=HOSTILE,
    )
    verdicts = {"before": "0000", "sft": "0110", "grpo": "1010", "further sft": "0110"}
    for name, right in verdicts.items():
        outcome.exams[name] = Exam(name, [HOSTILE] * 4, [mark == "1" for mark in right], 1.0)
    return outcome


def test_what_a_model_says_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    page = write_page(an_outcome(), Plan(model=HOSTILE), tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = write_page(an_outcome(), Plan(), tmp_path / "index.html").read_text()
    assert not re.search(r"(src|href)=|@import|url\(", page)


def test_the_page_states_accuracies_and_the_paired_gain(tmp_path: Path) -> None:
    page = write_page(an_outcome(), Plan(), tmp_path / "index.html").read_text()
    assert "<td>after SFT<td>50.0 % [" in page
    assert "<td>after GRPO<td>50.0 % [" in page
    assert "<td>+0.0 [" in page


def test_transcripts_show_gains_and_losses_alike() -> None:
    before = [True, True, False, False] * 5
    after = [True, False, True, False] * 5
    assert chosen(before, after) == [2, 6, 1, 5, 0, 4, 3, 7]
