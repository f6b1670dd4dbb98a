"""The report of a demo run: its story, and the curves and samples of its trainings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from orbiter.train.demo.outcome import DemoOutcome
from orbiter.train.demo.plan import DemoPlan
from orbiter.train.report import Exam, LedgerStep, Story, Task, keep_story, write_report

_NOTES = {
    "before": "the model as it comes",
    "sft": "after imitating the right traces",
    "grpo": "then by reward",
    "further sft": "control: more SFT instead of GRPO",
}


def write_page(outcome: DemoOutcome, plan: DemoPlan, folder: Path) -> Path:
    """Write the run's story and its report into its folder; return the report's path."""
    keep_story(folder, story_of(outcome, plan))
    return write_report(folder)


def story_of(outcome: DemoOutcome, plan: DemoPlan) -> Story:
    """Return the facts that the trainings' own folders do not contain."""
    return Story(
        title="A small agent learns to call tools",
        summary=(
            f"{plan.model} answers {len(outcome.held_out)} held-out requests of the Berkeley "
            "Function-Calling Leaderboard (simple_python). A call is right when its syntax tree "
            "matches the accepted answers. No function of these requests was seen in training."
        ),
        measure="right calls",
        percent=True,
        against="sft" if "sft" in outcome.exams else "",
        tasks=[Task(name=q.id, prompt=q.prompt, expected=q.expected) for q in outcome.held_out],
        exams=[
            Exam(
                name=exam.name,
                note=_NOTES.get(exam.name, ""),
                scores=[float(right) for right in exam.right],
                outputs=exam.replies,
            )
            for exam in outcome.exams.values()
        ],
        ledger=ledger_of(outcome),
        facts={
            **{f"seconds of {stage}": round(s, 1) for stage, s in outcome.seconds.items()},
            **{name: str(value) for name, value in asdict(plan).items()},
            "trained model": outcome.model,
        },
    )


def ledger_of(outcome: DemoOutcome) -> list[LedgerStep]:
    """Return the steps from traces to lessons; empty if the run did not get that far."""
    counts = outcome.counts
    if "train" not in counts:
        return []
    traces, right, distinct = (counts[f"{kind}traces"] for kind in ("", "right ", "distinct "))
    return [
        LedgerStep(
            name="captured", kept=traces, note="traces of the reference agent and the model"
        ),
        LedgerStep(name="filtered by reward", kept=right, dropped={"wrong call": traces - right}),
        LedgerStep(
            name="deduplicated", kept=distinct, dropped={"near duplicate": right - distinct}
        ),
        LedgerStep(
            name="split", kept=counts["train"], dropped={"for validation": counts["validation"]}
        ),
    ]
