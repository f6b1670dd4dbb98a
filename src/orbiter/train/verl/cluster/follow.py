"""What a job on verl says while it runs: a line of metrics a step, samples, faults of rewards.

Left out: the job itself. These are files that it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Step(NamedTuple):
    """A line of verl's metrics."""

    number: int
    data: Mapping[str, Any]


class Tail:
    """Reads the lines that are added to a file, whole ones only."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of a file that may not be there yet."""
        self.path, self._at = path, 0

    def new(self) -> Iterator[Step]:
        """Yield what was added since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            yield Step(int(record["step"]), record["data"])


def first_fault(folder: Path) -> str | None:
    """Return what the earliest fault of a reward was, where there is any."""
    try:
        faults = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    return str(json.loads(faults[0].read_bytes())["fault"]) if faults else None


def groups_of(dump: Path) -> list[dict[str, Any]]:
    """Read what verl wrote of a step's samples: one record a prompt, with all its outputs."""
    groups: dict[str, dict[str, Any]] = {}
    for line in dump.read_bytes().splitlines():
        sample = json.loads(line)
        key = str(sample["uid"]).split("_")[0]
        group = groups.setdefault(key, {"prompt": sample["input"], "outputs": []})
        group["outputs"].append({"text": sample["output"], "reward": sample["score"]})
    return list(groups.values())
