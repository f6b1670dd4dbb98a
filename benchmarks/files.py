"""Export and import of JSON lines, checked, against the standard json module without any checks.

    python benchmarks/files.py

CPU time over 20,000 chat items of about 800 bytes. The file to import is the peer's own, with its
spaces, so that no short cut for our own files counts.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

COUNT, ROUNDS = 20_000, 7


@dataclass
class Unchecked:
    """What somebody writes in a minute: a record without any checks."""

    state: str
    action: str
    reward: float
    metadata: dict[str, Any]
    episode_id: str
    step: int
    messages: list[dict[str, Any]]


def row(number: int) -> dict[str, Any]:
    return {
        "state": f"{number} " + "what does it say? " * 8,
        "action": "search(query='" + "x" * 100 + "')",
        "reward": number / 7,
        "metadata": {"agent": "assistant", "tags": ["a", "b"]},
        "episode_id": f"episode-{number // 10}",
        "step": number % 10,
        "messages": [
            {"role": "system", "content": "You are a careful assistant. " * 4},
            {"role": "user", "content": "what does it say? " * 8},
            {"role": "assistant", "content": "search it " * 6},
        ],
    }


def seconds(act: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    act()
    return time.process_time() - start


def main(folder: Path) -> None:
    rows = [row(number) for number in range(COUNT)]
    dataset = TrajectoryDataset()
    dataset.extend(TrajectoryItem(**one) for one in rows)
    theirs, ours = folder / "theirs.jsonl", folder / "ours.jsonl"

    def write_theirs() -> None:
        with theirs.open("w") as file:
            file.writelines(json.dumps(one) + "\n" for one in rows)

    def read_theirs() -> list[Unchecked]:
        with theirs.open() as file:
            return [Unchecked(**json.loads(line)) for line in file]

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object], float]] = {
        "export": (write_theirs, lambda: dataset.export_jsonl(ours), 3),
        "import": (read_theirs, lambda: TrajectoryDataset.from_jsonl(theirs), 0.8),
    }
    for name, (peer, own, target) in pairs.items():
        rounds = [(seconds(peer), seconds(own)) for _ in range(ROUNDS)]
        size = theirs.stat().st_size / 1e6
        ratios = [slow / fast for slow, fast in rounds]
        print(
            f"{name}: json {size / statistics.median(one for one, _ in rounds):.0f} MB/s, ours "
            f"{size / statistics.median(one for _, one in rounds):.0f} MB/s: "
            f"{statistics.median(ratios):.2f} x (from {min(ratios):.2f} to {max(ratios):.2f}; "
            f"target {target})"
        )
    assert list(TrajectoryDataset.from_jsonl(theirs)) == list(dataset)


if __name__ == "__main__":
    print(f"{machine()}")
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
