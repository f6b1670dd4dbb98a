"""Count how many items each data step kept and dropped, from the story or else from journals.

[{"name", "kept", "dropped": {reason: count}, "note"}, ...]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from orbiter.train.errors import StorageError
from orbiter.train.report.story import Story
from orbiter.train.resume_journal import read_journal
from orbiter.train.storage import read_records

CAPTURED = b'"orbiter.train.trajectory"'
"""Marker in the first line of a dataset's journal."""


def ledger_of(story: Story, folder: Path) -> list[dict[str, Any]]:
    """Return the steps that the data went through, in order."""
    if story.ledger:
        return [asdict(step) for step in story.ledger]
    return [step for path in sorted(folder.glob("*.jsonl")) for step in _from(path)]


def _from(path: Path) -> Iterator[dict[str, Any]]:
    first = next(read_records(path), b"")
    if CAPTURED in first[:80]:
        yield _captured(path)
    elif path.name == "synthesis.jsonl":
        yield _synthesised(path)


def _captured(path: Path) -> dict[str, Any]:
    rewards: list[float] = []
    agents = Counter[str]()
    waiting = dropped = 0
    for number, line in enumerate(read_records(path), start=1):
        record = _decoded(path, number, line[9:])
        settled = [outcome[1] for outcome in record.get("scored", ())]
        waiting -= len(settled)
        dropped += settled.count(None)
        for entry in [record.get("entry"), *settled]:
            if entry is None:
                continue
            item = entry[0]
            if item.get("reward") is None:
                waiting += 1
                continue
            rewards.append(item["reward"])
            agents[str(item.get("agent") or "")] += 1
    named = [f"{count} of {agent}" for agent, count in agents.most_common(4) if agent]
    mean = [f"mean reward {fmean(rewards):.3g}"] if rewards else []
    lost = {"waiting for a reward": waiting, "dropped by the strategy": dropped}
    return {
        "name": f"captured ({path.stem})",
        "kept": len(rewards),
        "dropped": {reason: count for reason, count in lost.items() if count},
        "note": ", ".join([*mean, *named]),
    }


def _synthesised(path: Path) -> dict[str, Any]:
    made = invalid = failed = 0
    for number, _, line, _ in read_journal(path):
        record = _decoded(path, number, line)
        candidates = record.get("candidates", ())
        made += len(candidates)
        invalid += sum(isinstance(candidate, str) for candidate in candidates)
        failed += record.get("failure") is not None
    lost = {"no usable item": invalid}
    return {
        "name": "synthesised",
        "kept": made - invalid,
        "dropped": {reason: count for reason, count in lost.items() if count},
        "note": f"{failed} calls failed" if failed else "",
    }


def _decoded(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{path}:{number} is damaged: {error}") from error
