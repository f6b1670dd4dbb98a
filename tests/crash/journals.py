"""Read what a killed run has kept of its step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orbiter.train.resume_journal import read_journal


def finished(folder: Path) -> list[dict[str, Any]]:
    """Return the finished episodes in the journals of a run."""
    records = [
        json.loads(line.record)
        for path in sorted((folder / "episodes").glob("*.jsonl"))
        for line in read_journal(path)
    ]
    return [record for record in records if "turns" in record]
