"""The summary page: one self-contained HTML file, no script, nothing fetched.

Everything that a model or a request said is escaped before it gets onto the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from orbiter.train.demo.account import gain_text, percent
from orbiter.train.demo.outcome import Exam, Outcome
from orbiter.train.demo.plan import Plan
from orbiter.train.storage import atomic_write

TRANSCRIPTS = 8
"""Requests shown with every model's reply."""

_TITLES = {
    "before": "as it comes",
    "sft": "after SFT",
    "grpo": "after GRPO",
    "further sft": "control: further SFT instead of GRPO",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } td, th { text-align: left; padding: .3rem .8rem;
       border-bottom: 1px solid #d8dee4; vertical-align: top }
pre, code { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.right { color: #116329 } .wrong { color: #a40e26 } svg { max-width: 100%; height: auto }
"""


def write_page(outcome: Outcome, plan: Plan, path: Path) -> Path:
    """Write the page and return its path."""
    html = "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>A small agent learns to call tools</title><style>{_STYLE}</style>",
            "<h1>A small agent learns to call tools</h1>",
            *_result(outcome, plan),
            *_curves(outcome),
            *_transcripts(outcome),
            *_facts(outcome, plan),
            "</html>",
        ]
    )
    with atomic_write(path) as file:
        file.write(html.encode())
    return path


def _result(outcome: Outcome, plan: Plan) -> Iterable[str]:
    sft = outcome.exams["sft"]
    yield (
        f"<p>{escape(plan.model)} answers {len(outcome.held_out)} held-out requests of the "
        "Berkeley Function-Calling Leaderboard (simple_python). A call is right when its syntax "
        "tree matches the accepted answers. No function of these requests was seen in training. "
        "Brackets hold 95 % intervals.</p>"
    )
    rows = [
        (_TITLES[exam.name], percent(exam), "" if exam is sft else gain_text(exam, sft))
        for exam in outcome.exams.values()
    ]
    yield _table(("model", "right calls", "against SFT, paired, in points"), rows)
    yield _bars([*outcome.exams.values()])


def _curves(outcome: Outcome) -> Iterable[str]:
    for name, points in outcome.curves.items():
        if len(points) > 1:
            yield f"<h2>{escape(name)}</h2>"
            yield _line(points)


def _transcripts(outcome: Outcome) -> Iterable[str]:
    yield "<h2>Transcripts</h2>"
    yield (
        "<p>Of each kind the first held-out requests: GRPO right where SFT was wrong, the other "
        "way round, both right, both wrong.</p>"
    )
    for index in chosen(outcome.exams["sft"].right, outcome.exams["grpo"].right):
        question = outcome.held_out[index]
        yield f"<h3>{escape(question.id)}: {escape(question.text)}</h3>"
        yield f"<details><summary>prompt</summary><pre>{escape(question.prompt)}</pre></details>"
        yield f"<p>One right call: <code>{escape(question.expected)}</code></p><table>"
        for exam in outcome.exams.values():
            mark = "right" if exam.right[index] else "wrong"
            yield (
                f"<tr><td>{escape(_TITLES[exam.name])}<td class={mark}>{mark}"
                f"<td><code>{escape(exam.replies[index])}</code>"
            )
        yield "</table>"


def chosen(before: Sequence[bool], after: Sequence[bool]) -> list[int]:
    """Return the first requests of each kind: gained, lost, right twice, wrong twice."""
    pairs = list(zip(before, after, strict=True))
    kinds = [(False, True), (True, False), (True, True), (False, False)]
    each = TRANSCRIPTS // len(kinds)
    return [i for kind in kinds for i in [i for i, p in enumerate(pairs) if p == kind][:each]]


def _facts(outcome: Outcome, plan: Plan) -> Iterable[str]:
    yield "<h2>The run</h2>"
    yield _table(("stage", "seconds"), [(k, f"{v:.0f}") for k, v in outcome.seconds.items()])
    yield _table(("what", "how many"), [(k, str(v)) for k, v in outcome.counts.items()])
    yield _table(("setting", "value"), [(k, str(v)) for k, v in asdict(plan).items()])
    yield f"<p>Trained model: <code>{escape(outcome.model)}</code></p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<table><tr>{''.join(f'<th>{escape(name)}' for name in head)}"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in rows]
    return "\n".join([*lines, "</table>"])


def _bars(exams: Sequence[Exam]) -> str:
    """Draw a bar for every exam, with its interval as a whisker; the axis is 0 to 100 %."""
    height = 34 * len(exams) + 10
    parts = [f'<svg viewBox="0 0 800 {height}" role="img" aria-label="right calls by model">']
    for row, exam in enumerate(exams):
        mean, low, high, _ = exam.accuracy
        y = 34 * row + 8
        parts.append(
            f'<text x="0" y="{y + 16}" font-size="14">{escape(exam.name)}</text>'
            f'<rect x="120" y="{y}" width="{680 * mean:.1f}" height="22" fill="#54aeff"/>'
            f'<path d="M{120 + 680 * low:.1f} {y + 11}H{120 + 680 * high:.1f}" stroke="#0a3069" '
            f'stroke-width="3"/>'
        )
    return "".join([*parts, "</svg>"])


def _line(points: Sequence[tuple[float, float]]) -> str:
    """Draw a curve; the lowest and highest value stand at the side, the last step below."""
    (first, last) = points[0][0], points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or 1.0
    places = " ".join(
        f"{70 + 720 * (x - first) / ((last - first) or 1):.1f},{170 - 150 * (y - low) / span:.1f}"
        for x, y in points
    )
    return (
        '<svg viewBox="0 0 800 200" role="img" aria-label="curve">'
        f'<polyline points="{places}" fill="none" stroke="#0969da" stroke-width="2"/>'
        f'<text x="0" y="25" font-size="13">{high:.3f}</text>'
        f'<text x="0" y="172" font-size="13">{low:.3f}</text>'
        f'<text x="740" y="195" font-size="13">step {last:.0f}</text></svg>'
    )
