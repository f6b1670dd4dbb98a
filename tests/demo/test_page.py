from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from orbiter.train.demo.outcome import DemoExam, DemoOutcome, Question
from orbiter.train.demo.page import story_of, write_page
from orbiter.train.demo.plan import DemoPlan

HOSTILE = "<script>alert('x')</script>&\"</code>"


def an_outcome() -> DemoOutcome:
    outcome = DemoOutcome(
        held_out=[Question(f"q{i}{HOSTILE}", HOSTILE, HOSTILE, HOSTILE) for i in range(4)],
        counts={
            "traces": 10,
            "right traces": 7,
            "distinct traces": 6,
            "train": 4,
            "validation": 2,
        },
        model=HOSTILE,
    )
    verdicts = {"before": "0000", "sft": "0110", "grpo": "1110", "further sft": "0110"}
    for name, right in verdicts.items():
        outcome.exams[name] = DemoExam(name, [HOSTILE] * 4, [mark == "1" for mark in right], 1.0)
    return outcome


def test_what_a_model_says_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    page = write_page(an_outcome(), DemoPlan(model=HOSTILE), tmp_path).read_text()
    assert "<script>alert" not in page
    assert page.count("\\u003cscript\\u003ealert") > 10


def test_the_report_has_the_accuracies_and_the_paired_gains(tmp_path: Path) -> None:
    page = write_page(an_outcome(), DemoPlan(), tmp_path)
    assert page == tmp_path / "report.html"
    told = page.read_text().partition('id="data">')[2].partition("</script>")[0]
    exams = json.loads(told)["runs"][0]["exams"]
    assert exams["against"] == "sft"
    assert [row["score"][0] for row in exams["rows"]] == [0, 0.5, 0.75, 0.5]
    assert [row["gain"] and row["gain"][0] for row in exams["rows"]] == [-0.5, None, 0.25, 0]


def test_the_ledger_accounts_for_every_trace() -> None:
    steps = story_of(an_outcome(), DemoPlan()).ledger
    for before, after in pairwise(steps):
        assert before.kept == after.kept + sum(after.dropped.values())
    assert story_of(DemoOutcome(), DemoPlan()).ledger == []
