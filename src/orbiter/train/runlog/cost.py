"""What a run has cost: tokens, seconds, and money paid to endpoints.

The steps of a training record their tokens and seconds, and in `judge_calls` and `judge_cost` what
its judges have used since the run began. What is known only as a whole, such as the cost of a
comparison, is in `cost.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgspec

from orbiter.train.errors import StorageError
from orbiter.train.runlog.log import METRICS_FILE, TIMES_FILE, read_numbers
from orbiter.train.storage import write_file

COST_FILE = "cost.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Tokens, seconds and money; costs can be added."""

    tokens: int = 0
    """Tokens sampled or learned from on this machine."""
    seconds: float = 0.0
    """Time of the work itself, in seconds; loading and waiting for a user are not counted."""
    endpoint_calls: int = 0
    """Answers paid for at endpoints."""
    endpoint_tokens: int = 0
    """Tokens of prompts and answers at endpoints."""
    money: float = 0.0
    """Paid to endpoints, in the currency of their prices; 0 if they have none."""

    def __add__(self, other: Cost) -> Cost:
        names = [field.name for field in fields(self)]
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def as_dict(self) -> dict[str, float]:
        """Return the parts that are not 0, by name."""
        return {name: value for name, value in asdict(self).items() if value}


def cost_of_rows(
    metrics: Iterable[Mapping[str, float]], times: Iterable[Mapping[str, float]] = ()
) -> Cost:
    """Return the cost that the records of a run's steps add up to."""
    steps, clock = list(metrics), list(times)
    return Cost(
        tokens=int(math.fsum(_known(steps, "tokens"))),
        seconds=math.fsum(_known(clock, "seconds")),
        endpoint_calls=int(max(_known([*steps, *clock], "judge_calls"), default=0)),
        money=max(_known([*steps, *clock], "judge_cost"), default=0.0),
    )


def _known(rows: Iterable[Mapping[str, float]], name: str) -> list[float]:
    """Return the values of a metric in the records that have it; a diverged run has NaN."""
    return [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]


def cost_of_run(folder: Path, trainings: Iterable[Path] | None = None) -> Cost:
    """Return what a run's folder says that it has cost.

    Args:
        folder: The folder; its `cost.json` counts.
        trainings: Folders of the trainings in it; None means the folder itself.

    Raises:
        StorageError: a file of the run is damaged.
    """
    cost = kept_cost(folder)
    for part in [folder] if trainings is None else trainings:
        rows = (read_numbers(part / name) for name in (METRICS_FILE, TIMES_FILE))
        # The folder's own cost.json is in `cost` already.
        cost += cost_of_rows(*rows) + (kept_cost(part) if part != folder else Cost())
    return cost


def keep_cost(folder: Path, cost: Cost) -> None:
    """Store what is known as a whole in a run's folder, replacing an earlier record."""
    write_file(folder / COST_FILE, json.dumps(asdict(cost), indent=2).encode() + b"\n")


def kept_cost(folder: Path) -> Cost:
    """Return what `keep_cost` stored; nothing if it has not.

    Raises:
        StorageError: the file exists but is not a cost.
    """
    path = folder / COST_FILE
    if not path.is_file() or path.is_symlink():
        return Cost()
    try:
        record = json.loads(path.read_bytes())
        return msgspec.convert(record, Cost)
    except ValueError as error:  # msgspec's too
        raise StorageError(f"{path} is not the cost of a run: {error}") from error
