"""Read a run's samples.jsonl: a few facts per group stay in memory, texts are read when shown.

If the file has grown, reading continues where it ended, so following a long run stays cheap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from orbiter.train.errors import StorageError
from orbiter.train.report.shown import SHOWN, Fact, Group, by_turns, group_for_page, outputs_of


class SampleGroups:
    """The groups of samples of a run."""

    def __init__(self, path: Path) -> None:
        """Set the file, which need not exist yet."""
        self.path = path
        self.facts: list[Fact] = []
        """One entry per group, in order."""
        self._end = 0

    def read_on(self) -> None:
        """Read the lines added since the last call; start again if the file became shorter.

        Raises:
            StorageError: a line is not a sample of a run.
        """
        if not self.path.is_file():
            return
        if self.path.stat().st_size < self._end:
            self.facts, self._end = [], 0
        with self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                # Still being written; it is read the next time.
                if not line.endswith(b"\n"):
                    return
                self.facts.append(self._fact(line))
                self._end += len(line)

    def _fact(self, line: bytes) -> Fact:
        try:
            return fact_of(json.loads(line), self._end)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            at = len(self.facts) + 1
            raise StorageError(f"{self.path}:{at} is not a sample of a run: {error}") from error

    def chosen(self, *, max_bytes: int) -> list[Group]:
        """Return the groups to show within the size limit, in order, each with the reason."""
        if not self.facts:
            return []
        with self.path.open("rb") as file:

            def read(index: int) -> dict[str, Any]:
                file.seek(self.facts[index].start)
                return dict(json.loads(file.readline()))

            return choose(self.facts, read, max_bytes=max_bytes)


def choose(
    facts: Sequence[Fact], read: Callable[[int], Mapping[str, Any]], *, max_bytes: int
) -> list[Group]:
    """Return the groups to show within the size limit, but at least one, in order.

    Args:
        facts: One entry for each group.
        read: Returns the record of a group by its position.
        max_bytes: Size limit of all groups together, as JSON.
    """
    shown: dict[int, Group] = {}
    room = max_bytes
    for index, why in by_turns(facts):
        if index in shown:
            shown[index]["why"].append(why)
            continue
        group = group_for_page(read(index)) | {"why": [why]}
        room -= len(json.dumps(group))
        if (room < 0 and shown) or len(shown) == SHOWN:
            break
        shown[index] = group
    return [shown[index] for index in sorted(shown)]


def fact_of(record: Mapping[str, Any], start: int) -> Fact:
    """Return the summary of a group that begins at byte `start` of its file.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the record is not that of a group.
    """
    outputs = outputs_of(record)
    rewards = [float(o["reward"]) for o in outputs if o["reward"] is not None]
    names = dict.fromkeys(name for output in outputs for name in output["rewards"])
    parts = {name: _mean(o["rewards"].get(name) for o in outputs) for name in names}
    return Fact(
        start=start,
        step=int(record["step"]),
        prompt=hash(record.get("task") or record.get("prompt")),
        reward=_mean(rewards),
        rewards=tuple(rewards),
        parts={name: mean for name, mean in parts.items() if mean is not None},
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
