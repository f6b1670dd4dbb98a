"""Writes Minari offline data sets (Farama): a folder that `minari.load_dataset` opens.

An episode is one Arrow record batch in the layout of Minari 0.5: states and actions as text, with
the rewards, terminations and truncations of gymnasium. The observation after the last action is
empty, since an item does not record it. The last step terminates its episode, unless its `done` is
False: then the episode was truncated.

Not supported: reading; messages and tools, for which the format has no fields; and episodes with
an unknown reward, since Minari requires a number for every step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from orbiter.train.disk import disk_errors
from orbiter.train.errors import StorageError, require
from orbiter.train.formats.format import ExportReport, Format
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.left_out import Left

LAYOUT = "0.5.0"
"""The Minari version of this layout; later versions open it too."""
CARRIED = frozenset({"state", "action", "reward", "done", "episode_id", "task_id", "agent"})


def write(items: Iterable[TrajectoryItem], path: Path) -> ExportReport:
    """Write a data set as a folder.

    `minari.load_dataset` finds it by the folder's name if that ends in a version, as in `shop-v0`;
    `minari.MinariDataset(folder / "data")` opens it under any name.

    Raises:
        StorageError: the path exists already, or the folder cannot be written.
    """
    # With the process id, so that two exports at once do not share a staging folder.
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.exists():
        raise StorageError(f"{path} exists already: remove it, or write the next version")
    try:
        with disk_errors(path):
            (staged / "data").mkdir(parents=True)
            left = Left()
            written = _write(items, staged / "data", _name(path.name), left)
            staged.replace(path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return ExportReport(written, dict(left), path)


def _write(items: Iterable[TrajectoryItem], folder: Path, name: str, left: Left) -> int:
    arrow = require("pyarrow", extra="parquet")
    states, actions = _Space(), _Space()
    # An observation follows every action, also the last, and it must be inside the space.
    states.take("")  # the observation after the last action of each episode
    episodes = steps = 0
    for number, episode in enumerate(_episodes(items, left)):
        _write_episode(arrow, folder / str(number), number, episode)
        for item in episode:
            states.take(item.state)
            actions.take(item.action)
            left.note(item, _carried(episode))
        episodes, steps = number + 1, steps + len(episode)
    metadata = {
        "dataset_id": name,
        "minari_version": LAYOUT,
        "data_format": "arrow",
        "jpeg_encoding": False,
        "total_episodes": episodes,
        "total_steps": steps,
        "observation_space": states.described(),
        "action_space": actions.described(),
        "algorithm_name": "orbiter-train",
    }
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    return steps


def _write_episode(
    arrow: ModuleType, folder: Path, number: int, episode: Sequence[TrajectoryItem]
) -> None:
    folder.mkdir()
    last = episode[-1]
    # Minari needs an end for every episode: an unknown `done` at the last step means it ended.
    ends = [item.done is True or (item is last and item.done is None) for item in episode]
    cuts = [item is last and item.done is False for item in episode]
    columns = {
        "observations": arrow.array([*(item.state for item in episode), ""], arrow.string()),
        # Minari's layout has one row more than steps: the last observation, without an action.
        "actions": arrow.array([*(item.action for item in episode), None], arrow.string()),
        "rewards": arrow.array([*(item.reward for item in episode), 0.0], arrow.float64()),
        "terminations": arrow.array([*ends, False], arrow.bool_()),
        "truncations": arrow.array([*cuts, False], arrow.bool_()),
    }
    batch = arrow.RecordBatch.from_pydict(columns)
    with (
        arrow.OSFile(str(folder / "part-0.arrow"), "wb") as sink,
        arrow.ipc.new_file(sink, batch.schema) as file,
    ):
        file.write_batch(batch)
    shared = {name: getattr(last, name) for name in sorted(_carried(episode) & _SHARED)}
    entries = {name: value for name, value in shared.items() if value is not None}
    metadata = {"id": number, "total_steps": len(episode), **entries}
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def _episodes(items: Iterable[TrajectoryItem], left: Left) -> Iterator[Sequence[TrajectoryItem]]:
    """Yield the steps of each episode in order; an item without an episode is one by itself."""
    by_episode: dict[object, list[TrajectoryItem]] = {}
    for index, item in enumerate(items):
        by_episode.setdefault(index if item.episode_id is None else item.episode_id, []).append(
            item
        )
    for episode in by_episode.values():
        # As a whole, since an episode with a gap would be another episode.
        if any(item.reward is None for item in episode):
            left["items of an episode with an unknown reward"] += len(episode)
            continue
        # With unknown steps the order of the data is the best there is.
        if all(item.step is not None for item in episode):
            episode.sort(key=lambda item: item.step or 0)
        yield episode


def _carried(episode: Sequence[TrajectoryItem]) -> frozenset[str]:
    """Return the fields that can be stored; fields of the episode must be equal in all steps."""
    first = episode[0]
    split = {
        name
        for name in _SHARED
        if any(getattr(item, name) != getattr(first, name) for item in episode)
    }
    return CARRIED - split


def _name(folder: str) -> str:
    """Return a data set name that Minari accepts, made from a folder's name."""
    name = re.sub(r"[^\w-]", "-", folder, flags=re.ASCII)
    return name if re.search(r"\w-v\d+$", name, flags=re.ASCII) else f"{name}-v0"


class _Space:
    """The longest text and the set of characters of a text space."""

    def __init__(self) -> None:
        self._characters: set[str] = set()
        self._longest = 1

    def take(self, text: str) -> None:
        """Extend the space so that it contains a text."""
        self._characters.update(text)
        self._longest = max(self._longest, len(text))

    def described(self) -> str:
        """Return Minari's description of the space as gymnasium's `Text`."""
        space: dict[str, Any] = {
            "type": "Text",
            "max_length": self._longest,
            "min_length": 0,
            "charset": "".join(sorted(self._characters)) or " ",
        }
        return json.dumps(space)


def _detect(head: bytes, path: Path) -> float:  # noqa: ARG001 - nothing is read
    return 0.0


_SHARED = frozenset({"episode_id", "task_id", "agent"})

FORMAT = Format(
    name="minari",
    about="Minari 0.5, Farama's offline data sets (Arrow)",
    suffixes=(),
    survives=CARRIED,
    detect=_detect,
    write=write,
)
