"""Read a run's folder into one document, which the page draws and the live server returns.

    {"format": 1, "runs": [{"name", "title", "trainings", "exams", "tasks", "ledger",
     "evolutions", "facts", ...}, and a second one where two are compared]}

A folder is a run if it or one of its subfolders contains `run.json` or `evolution.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orbiter.train.contained import check_contained
from orbiter.train.errors import StorageError
from orbiter.train.evaluation import mean_interval, paired_difference
from orbiter.train.redact import mask_texts, secrets_of_the_environment
from orbiter.train.report.compared import read_comparison
from orbiter.train.report.ledger import ledger_of
from orbiter.train.report.lineage import read_lineage
from orbiter.train.report.shown import OUTPUT_CHARS, PROMPT_CHARS, cut
from orbiter.train.report.story import STORY_FILE, Story, paired, read_story
from orbiter.train.report.training import Training, interval, short
from orbiter.train.runlog.cost import cost_of_run

FORMAT = 1
TASKS = 300
"""Maximum number of exam tasks on a page."""
SAMPLE_BYTES, TASK_BYTES = 300_000, 170_000
"""Size limits on one page: all groups of samples, and all exam tasks."""
DEPTH = 2
"""How many levels of subfolders are searched for runs."""
NOT_RUNS = ("checkpoints", "best", "model")
"""Folders that contain weights, not runs."""

Doc = dict[str, Any]


def _is_in(folder: Path) -> bool:
    """Return whether a path is a folder, and not a link, which might lead anywhere."""
    return folder.is_dir() and not folder.is_symlink()


class RunFolder:
    """A run's folder, which may be read again while the run continues."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, which must contain something to show.

        Raises:
            StorageError: there is no run in `folder`.
        """
        self.folder = folder
        self._trainings: dict[Path, Training] = {}
        if not any(self._found()) and not (folder / STORY_FILE).is_file():
            raise StorageError(
                f"{folder} holds no run: neither run.json nor evolution.jsonl is in it or in the "
                "folders within; give output_dir= to a trainer, or run_dir= to an evolution"
            )

    def document(self, *, share: float = 1.0) -> Doc:
        """Return the run in its present state; `share` is its part of the page's size limits.

        Raises:
            StorageError: a file of the run is damaged.
        """
        paths = [*self._found()]
        story = read_story(self.folder)
        trainings = self._ordered([path.parent for path in paths if path.name == "run.json"])
        with_samples = sum((t.folder / "samples.jsonl").is_file() for t in trainings)
        # The limit is for the whole page, so several trainings share it.
        room = int(share * SAMPLE_BYTES / max(1, with_samples))
        document = {
            "name": self.folder.resolve().name,
            "title": story.title or self.folder.resolve().name,
            "summary": story.summary,
            "facts": dict(story.facts),
            "trainings": [training.document(max_bytes=room) for training in trainings],
            "evolutions": [
                read_lineage(path, self._name(path.parent))
                for path in paths
                if path.name == "evolution.jsonl"
            ],
            "exams": exams(story),
            "tasks": tasks(story, max_bytes=int(share * TASK_BYTES)),
            "tasks_in_all": len(story.tasks),
            "ledger": ledger_of(story, self.folder),
            "cost": cost_of_run(self.folder, [training.folder for training in trainings]).as_dict(),
            "comparison": read_comparison(self.folder),
        }
        # A page is passed on to others, and samples may contain keys of the environment.
        return dict(mask_texts(document, secrets_of_the_environment()))

    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Return a fingerprint (sizes and times of the files) that changes as the run proceeds."""
        names = ("metrics.jsonl", "samples.jsonl", "times.jsonl", "alarms.json", "notes.json")
        files = [self.folder / STORY_FILE]
        for path in self._found():
            files += [path, *(path.parent / name for name in names)]
        seen = [(path, path.stat()) for path in files if path.is_file()]
        return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in seen)

    def _found(self) -> Iterator[Path]:
        folders = [self.folder]
        # Level by level, so that a folder's own run comes before those within.
        for _ in range(DEPTH + 1):
            for folder in folders:
                check_contained(folder)
                for name in ("run.json", "evolution.jsonl"):
                    if (folder / name).is_file():
                        yield folder / name
            inside = (sorted(f.iterdir()) for f in folders if f.is_dir())
            folders = [f for fs in inside for f in fs if f.name not in NOT_RUNS and _is_in(f)]

    def _ordered(self, folders: list[Path]) -> list[Training]:
        """Return the trainings in the order in which they started."""
        for folder in folders:
            if folder not in self._trainings:
                self._trainings[folder] = Training(folder, self._name(folder))
        known = [self._trainings[folder] for folder in folders]
        return sorted(known, key=lambda t: (t.began, (t.folder / "run.json").stat().st_mtime_ns))

    def _name(self, folder: Path) -> str:
        inside = folder.relative_to(self.folder)
        return str(inside) if inside.parts else self.folder.resolve().name


def exams(story: Story) -> Doc | None:
    """Return the mean of every exam with its interval, and its gain over the reference exam."""
    if not story.exams:
        return None
    against = next((e for e in story.exams if e.name == story.against), story.exams[0])
    return {
        "measure": story.measure,
        "percent": story.percent,
        "against": against.name,
        "rows": [
            {
                "name": exam.name,
                "note": exam.note,
                "score": interval(mean_interval(exam.known)),
                "gain": None
                if exam is against
                else interval(paired_difference(*paired(exam, against))),
            }
            for exam in story.exams
        ],
    }


def tasks(story: Story, *, max_bytes: int) -> list[Doc]:
    """Return tasks with every exam's answer and score, up to the size limit.

    If not all fit, tasks whose scores differ between the exams come first.
    """
    # A stable sort: within both kinds the tasks keep their order.
    order = sorted(range(len(story.tasks)), key=lambda at: not _differs(story, at))
    shown: dict[int, Doc] = {}
    for at in order[:TASKS]:
        doc = _task(story, at)
        max_bytes -= len(json.dumps(doc))
        if max_bytes < 0:
            break
        shown[at] = doc
    return [shown[at] for at in sorted(shown)]


def _differs(story: Story, at: int) -> bool:
    return len({exam.scores[at] for exam in story.exams}) > 1


def _task(story: Story, at: int) -> Doc:
    task = story.tasks[at]
    answers = [
        {
            "score": None if (score := e.scores[at]) is None else short(score),
            "text": cut(e.outputs[at], OUTPUT_CHARS) if e.outputs else "",
        }
        for e in story.exams
    ]
    texts: Mapping[str, str] = {
        "name": cut(task.name, 200),
        "expected": cut(task.expected, OUTPUT_CHARS),
    }
    kept = {name: text for name, text in texts.items() if text}
    return {"prompt": cut(task.prompt, PROMPT_CHARS), "answers": answers, **kept}
