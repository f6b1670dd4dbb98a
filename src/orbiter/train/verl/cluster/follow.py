"""The files that a job on verl writes while it runs: metrics of each step, samples, reward faults.

verl's metrics get our names; those without one keep verl's. What verl does not measure is absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from orbiter.train.verl.algorithms import ALGORITHMS, VeRLAlgorithm

NAMES: Mapping[str, str] = {
    "reward": "critic/score/mean",
    "loss": "actor/loss",
    "pg_loss": "actor/pg_loss",
    "entropy": "actor/entropy",
    "grad_norm": "actor/grad_norm",
    "clip_fraction": "actor/pg_clipfrac",
    "approx_kl": "actor/ppo_kl",
    "learning_rate": "actor/lr",
    "length": "response_length/mean",
    "cut_off": "response_length/clip_ratio",
    "value": "critic/values/mean",
    "vf_loss": "critic/vf_loss",
    "explained_variance": "critic/vf_explained_var",
    "reward_std": "reward_std",
    "reward_faults": "reward_faults",
}
"""Our name of each metric, and verl's; the KL's depends on the algorithm."""
CLOCK = ("timing_s/", "timing_per_token_ms/", "perf/")
"""Prefixes of verl's timings, which are kept apart from the metrics."""
OWN = "verl/"
"""Prefix of a metric that keeps verl's own name."""


class Step(NamedTuple):
    """A line of verl's metrics."""

    number: int
    data: Mapping[str, Any]


class Tail:
    """Reads the complete lines that are added to a file."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of a file that need not exist yet."""
        self.path, self._at = path, 0

    def new(self) -> Iterator[Step]:
        """Yield the lines that were added since the last call."""
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
    """Return the earliest fault of a reward, or None."""
    try:
        faults = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    return str(json.loads(faults[0].read_bytes())["fault"]) if faults else None


def groups_of(dump: Path) -> list[dict[str, Any]]:
    """Read the samples of a step that verl wrote: one record for each prompt, with all outputs."""
    groups: dict[str, dict[str, Any]] = {}
    for line in dump.read_bytes().splitlines():
        sample = json.loads(line)
        key = str(sample["uid"]).split("_")[0]
        group = groups.setdefault(key, {"prompt": sample["input"], "outputs": []})
        group["outputs"].append({"text": sample["output"], "reward": sample["score"]})
    return list(groups.values())


class Row(NamedTuple):
    """What one step measured."""

    metrics: dict[str, float]
    clock: dict[str, float]


def as_row(data: Mapping[str, object], algorithm: VeRLAlgorithm) -> Row:
    """Return a line of verl's metrics under our names; values that are no numbers are left out."""
    kl = ALGORITHMS[algorithm].verl_kl
    numbers = {k: float(v) for k, v in data.items() if isinstance(v, int | float)}
    named = {ours: numbers[theirs] for ours, theirs in NAMES.items() if theirs in numbers}
    if kl in numbers:
        named["kl"] = numbers[kl]
    named |= {k: v for k, v in numbers.items() if k.startswith("reward/")}
    named |= _validated(numbers)
    taken = {*NAMES.values(), *named}
    clock = {OWN + k: v for k, v in numbers.items() if k.startswith(CLOCK)}
    others = {OWN + k: v for k, v in numbers.items() if not k.startswith(CLOCK) and k not in taken}
    seconds = numbers.get("timing_s/step", 0.0)
    tokens = numbers.get("perf/total_num_tokens", 0.0)
    clock |= {"seconds": seconds}
    if seconds > 0:
        clock["tokens_per_second"] = tokens / seconds
    return Row(named | others, clock)


def _validated(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return a validation's rewards: `val-core/<source>/reward/mean@1` and similar keys.

    All sources count equally; their names may contain slashes.
    """
    held: dict[str, list[float]] = {}
    for key, value in numbers.items():
        kind, *parts = key.split("/")
        if kind in {"val-core", "val-aux"} and "reward" in parts and parts[-1][:5] == "mean@":
            name = "/".join(parts[parts.index("reward") : -1])
            held.setdefault(f"eval/{name}", []).append(value)
    return {name: fmean(values) for name, values in held.items()}
