"""Show a run on one web page: curves, samples, data and settings.

All functions read a run's folder. `write_report` makes one self-contained file, `write_comparison`
shows two runs side by side, `serve_live` follows a running job, and `keep_story` adds facts that
the run's own files do not contain. `keep_comparison` stores a comparison of two models, and
`write_traces` shows the episodes of captured traces.
"""

from orbiter.train.report.compared import keep_comparison
from orbiter.train.report.live import serve_live
from orbiter.train.report.story import Exam, LedgerStep, Story, Task, keep_story
from orbiter.train.report.traces import write_traces
from orbiter.train.report.write import write_comparison, write_report

__all__ = [
    "Exam",
    "LedgerStep",
    "Story",
    "Task",
    "keep_comparison",
    "keep_story",
    "serve_live",
    "write_comparison",
    "write_report",
    "write_traces",
]
