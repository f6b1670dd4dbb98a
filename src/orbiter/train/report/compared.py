"""Store a comparison of two models in a folder, and read it for the page.

comparison.json     the differences, slices and requirements, as `Comparison.as_dict` has them
story.json          the items with both models' answers (`story.py`)
cost.json           what both models together have cost
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orbiter.train.errors import StorageError
from orbiter.train.report.story import Exam, Story, Task, keep_story
from orbiter.train.runlog.cost import keep_cost
from orbiter.train.storage import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orbiter.train.comparison import Comparison, Outcome

COMPARISON_FILE = "comparison.json"


def keep_comparison(folder: str | os.PathLike[str], comparison: Comparison) -> Path:
    """Write a comparison into a folder, where `write_report` finds it; return the folder."""
    from orbiter.train.verl.tasks import as_tasks

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    items = as_tasks(comparison.tasks).items
    keep_story(
        target,
        Story(
            title=f"{comparison.b.name} against {comparison.a.name}",
            measure="reward",
            tasks=[Task(prompt=item.state, expected=item.action) for item in items],
            exams=[
                _exam(comparison.a.name, comparison.outcomes_a),
                _exam(comparison.b.name, comparison.outcomes_b),
            ],
        ),
    )
    keep_cost(target, comparison.a.cost + comparison.b.cost)
    text = json.dumps(comparison.as_dict(), indent=2, allow_nan=False)
    write_file(target / COMPARISON_FILE, text.encode() + b"\n")
    return target


def _exam(name: str, outcomes: Sequence[Outcome]) -> Exam:
    return Exam(
        name=name,
        scores=[outcome.total for outcome in outcomes],
        outputs=[outcome.output for outcome in outcomes],
    )


def read_comparison(folder: Path) -> dict[str, Any] | None:
    """Return the comparison in a folder, or None if it has no comparison.

    Raises:
        StorageError: the file exists but is not a comparison.
    """
    path = folder / COMPARISON_FILE
    # A link in a foreign folder may lead anywhere.
    if not path.is_file() or path.is_symlink():
        return None
    try:
        comparison = json.loads(path.read_bytes())
        # Read only to see that it is a comparison.
        comparison["differences"]["reward"]["mean"]
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is not the record of a comparison: {error!r}") from error
    return dict(comparison)
