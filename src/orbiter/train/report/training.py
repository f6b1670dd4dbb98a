"""Read one training run for the page: metrics over the steps, rewards and samples.

{"name", "kind", "config", "environment", "steps", "every", "series": {metric: [...]},
 "spread": {"edges", "steps", "counts"}, "gains": [...], "validations": [...], "groups": [...],
     "groups_in_all", "alarms": [...], "notes": [...]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from orbiter.train.errors import StorageError
from orbiter.train.evaluation import Interval, mean_interval, paired_difference
from orbiter.train.report.samples import SampleGroups
from orbiter.train.report.shown import Fact
from orbiter.train.runlog import read_config, read_numbers
from orbiter.train.runlog.alarms import read_alarms, read_notes

POINTS = 1_000
"""Maximum number of points per curve; longer curves average neighbouring steps."""
METRICS = 60
"""Maximum number of metrics on a page."""
BINS, COLUMNS = 20, 60
"""Size of the reward picture: bins of the reward, columns of steps."""
ENOUGH_PAIRS = 5
"""Prompts that two parts of a run must share to be compared in pairs."""

Doc = dict[str, Any]


class Training:
    """A folder with a run.json; it may be read again while the run continues."""

    def __init__(self, folder: Path, name: str) -> None:
        """Set the run's folder and its name on the page."""
        self.folder, self.name = folder, name
        self.samples = SampleGroups(folder / "samples.jsonl")
        self.began = str(_environment(folder).get("began", ""))

    def document(self, *, max_bytes: int) -> Doc:
        """Return the run in its present state, with at most `max_bytes` of samples.

        Raises:
            StorageError: a file of the run is damaged.
        """
        self.samples.read_on()
        config = read_config(self.folder)
        groups = self.samples.chosen(max_bytes=max_bytes)
        return {
            "name": self.name,
            "kind": kind_of(config),
            "config": config,
            "environment": _environment(self.folder),
            **curves(self.folder),
            "spread": spread(self.samples.facts),
            "gains": gains(self.samples.facts),
            "validations": validations(read_numbers(self.folder / "metrics.jsonl")),
            "groups": groups,
            "groups_in_all": len(self.samples.facts),
            "alarms": read_alarms(self.folder),
            "notes": read_notes(self.folder),
        }


def kind_of(config: Mapping[str, object]) -> str:
    """Return a short name for how a run learned."""
    if "algorithm" in config:
        return str(config["algorithm"]).upper()
    if "reward_weighted" in config:
        return "SFT"
    if "centering_coef" in config:
        return "reward model"
    return str(config["method"]).upper() if "method" in config else "run"


def _environment(folder: Path) -> Mapping[str, object]:
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{path} does not describe where a run took place: {error}") from error


def curves(folder: Path) -> Doc:
    """Return every metric over the steps: null if not measured, a name if not finite."""
    rows: dict[int, dict[str, float]] = {}
    # Two files, because metrics are the same in a resumed run and times are not.
    for file in ("metrics.jsonl", "times.jsonl"):
        for row in read_numbers(folder / file):
            rows.setdefault(int(row["step"]), {}).update(row)
    ordered = [rows[step] for step in sorted(rows)]
    # A browser draws thousands of points slowly, and no screen can show them.
    every = max(1, math.ceil(len(ordered) / POINTS))
    parts = [ordered[at : at + every] for at in range(0, len(ordered), every)]
    names = [n for n in dict.fromkeys(n for row in ordered for n in row) if n != "step"][:METRICS]
    return {
        "steps": [int(part[-1]["step"]) for part in parts],
        "every": every,
        "series": {
            n: [_point(row[n] for row in part if n in row) for part in parts] for n in names
        },
    }


def _point(values: Iterable[float]) -> float | str | None:
    """Return the mean of the steps in one point, or the name of a value that is not finite."""
    known = list(values)
    if not known:
        return None
    bad = next((value for value in known if not math.isfinite(value)), None)
    return short(fmean(known)) if bad is None else str(bad)


def short(value: float) -> float:
    """Return the number with five significant digits, more than a chart can show."""
    return float(f"{value:.5g}")


def spread(facts: Sequence[Fact]) -> Doc | None:
    """Return the distribution of rewards over the steps; None if there are no rewards."""
    rewards = [reward for fact in facts for reward in fact.rewards]
    if not rewards:
        return None
    low, high = min(rewards), max(rewards)
    # Equal rewards fall into one bin of any width.
    width = (high - low) / BINS or 1.0
    first, last = facts[0].step, facts[-1].step
    columns = min(COLUMNS, last - first + 1)
    # By step, not by group: groups of the same step belong into one column.
    per_column = (last - first + 1) / columns
    counts = [[0] * BINS for _ in range(columns)]
    for fact in facts:
        column = counts[min(columns - 1, int((fact.step - first) / per_column))]
        for reward in fact.rewards:
            column[min(BINS - 1, int((reward - low) / width))] += 1
    return {
        "low": low,
        "high": high,
        "steps": [math.ceil(first + at * per_column) for at in range(columns)],
        "counts": counts,
    }


def gains(facts: Sequence[Fact]) -> list[Doc]:
    """Compare the first fifth of the steps with the last: every reward, with intervals.

    Each prompt counts as one observation, because groups of the same prompt are not independent.
    """
    steps = sorted({fact.step for fact in facts})
    fifth = len(steps) // 5
    if not fifth:
        return []
    early = [fact for fact in facts if fact.step <= steps[fifth - 1]]
    late = [fact for fact in facts if fact.step >= steps[-fifth]]
    names = dict.fromkeys(name for fact in early + late for name in fact.parts)
    # With a single reward its row would repeat that of the total.
    several = ["", *names] if len(names) > 1 else [""]
    rows = [_gain(name, _by_prompt(early, name), _by_prompt(late, name)) for name in several]
    return [row for row in rows if row]


def _by_prompt(facts: Sequence[Fact], name: str) -> dict[int, float]:
    """Return each prompt's mean of one reward component; name "" means the total reward."""
    held: dict[int, list[float]] = {}
    for fact in facts:
        value = fact.parts.get(name) if name else fact.reward
        if value is not None:
            held.setdefault(fact.prompt, []).append(value)
    return {prompt: fmean(values) for prompt, values in held.items()}


def _gain(name: str, before: Mapping[int, float], after: Mapping[int, float]) -> Doc:
    if not before or not after:
        return {}
    # Paired by prompt, which takes out how hard each prompt is.
    shared = [prompt for prompt in before if prompt in after]
    difference = None
    if len(shared) >= ENOUGH_PAIRS:
        difference = interval(
            paired_difference([after[p] for p in shared], [before[p] for p in shared])
        )
    return {
        "what": f"reward: {name}" if name else "reward",
        "before": interval(mean_interval(before.values())),
        "after": interval(mean_interval(after.values())),
        "gain": difference,
    }


def validations(rows: Sequence[Mapping[str, float]]) -> list[Doc]:
    """Compare the first validation with the last one, if there are at least two."""
    measured = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if len(measured) < 2:
        return []
    first, last = measured[0], measured[-1]
    return [
        {"what": f"validation {name}", "gain": None, "before": before, "after": after}
        for name in ("reward", "accuracy", "margin", "loss")
        if (before := _validated(first, name)) and (after := _validated(last, name))
    ]


def _validated(row: Mapping[str, float], name: str) -> list[float | None] | None:
    if f"eval/{name}" not in row:
        return None
    ends = (row.get(f"eval/{name}_low"), row.get(f"eval/{name}_high"))
    known = [None if end is None else short(end) for end in ends]
    return [short(row[f"eval/{name}"]), *(known if None not in known else (None, None)), None]


def interval(measured: Interval) -> list[float | None]:
    """Return mean, low, high and n; null for a bound that is unknown."""
    mean, low, high, n = measured
    return [short(mean), *(short(end) if math.isfinite(end) else None for end in (low, high)), n]
