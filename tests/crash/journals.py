"""Read what a killed run has kept of its step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def finished(folder: Path) -> list[dict[str, Any]]:
    """Return the finished episodes in the journals of a run."""
    lines = [
        line
        for path in sorted((folder / "episodes").glob("*.jsonl"))
        for line in path.read_bytes().splitlines(keepends=True)
    ]
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [record for record in whole if "turns" in record]
