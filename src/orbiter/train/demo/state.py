"""The progress of a demo run, stored in its folder so that the next call continues it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from orbiter.train.demo.outcome import DemoOutcome
from orbiter.train.demo.plan import DemoPlan
from orbiter.train.errors import StorageError
from orbiter.train.storage import write_file

STATE_FILE = "state.json"


@dataclass(slots=True)
class DemoState:
    """A run's plan, its finished stages and what they measured."""

    plan: DemoPlan
    outcome: DemoOutcome = field(default_factory=DemoOutcome)
    finished: list[str] = field(default_factory=list[str])
    """Names of the stages that are complete."""
    dtype: str = ""
    """The arithmetic, resolved when the run began, so that a resume on another machine keeps it."""
    steps: int | None = None
    """GRPO steps, chosen when that stage first began."""

    def save(self, folder: Path) -> None:
        """Write the state to the run's folder, atomically."""
        write_file(folder / STATE_FILE, msgspec.json.encode(self))


def open_state(plan: DemoPlan, folder: Path) -> DemoState:
    """Return the state of the run in `folder`, or a new one if the folder is empty or missing.

    A finished run may be reopened with `plan.control` switched on; then only the control runs.

    Raises:
        StorageError: the folder holds something else, or a run with other settings.
    """
    path = folder / STATE_FILE
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise StorageError(
                f"{folder} is not empty and holds no run of the demo; choose another"
            )
        return DemoState(plan)
    try:
        state = msgspec.json.decode(path.read_bytes(), type=DemoState)
    except msgspec.DecodeError as error:
        raise StorageError(
            f"{path} is damaged ({error}); delete {folder} or choose another"
        ) from error
    if replace(state.plan, control=plan.control) != plan:
        raise StorageError(f"{folder} holds a run with other settings; choose another folder")
    state.plan = plan
    return state


def unfinished(plan: DemoPlan, runs: Path) -> Path | None:
    """Return the newest folder below `runs` with a run of this plan that is not complete."""
    return next(_unfinished(plan, runs), None)


def _unfinished(plan: DemoPlan, runs: Path) -> Iterator[Path]:
    last = "further sft" if plan.control else "report"
    for folder in sorted(runs.glob("demo-*"), reverse=True):
        if (folder / STATE_FILE).exists():
            try:
                state = open_state(plan, folder)
            except StorageError:  # of another plan, or damaged: not the one to continue
                continue
            if last not in state.finished:
                yield folder
