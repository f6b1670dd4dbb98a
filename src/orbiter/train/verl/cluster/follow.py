"""Read the files that a job on verl writes while it runs: metrics, samples, reward faults.

verl's metrics are renamed to ours where we have a name, and keep verl's name otherwise. Metrics
that verl does not measure are absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from orbiter.train.verl.algorithms import ALGORITHMS, VeRLAlgorithm
from orbiter.train.verl.cluster.inside.batches import EVALUATION, METRIC

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
"""Maps our name of each metric to verl's; the name of the KL depends on the algorithm."""
CLOCK = ("timing_s/", "timing_per_token_ms/", "perf/")
"""Prefixes of verl's timings, which are stored separately from the metrics."""
OWN = "verl/"
"""Prefix of a metric that keeps verl's name."""


class MetricsLine(NamedTuple):
    """One line of verl's metrics file."""

    number: int
    data: Mapping[str, Any]


class Tail:
    """Reads the complete lines that are appended to a file."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of the file, which need not exist yet."""
        self.path, self._at = path, 0

    def new(self) -> Iterator[MetricsLine]:
        """Yield the lines that were appended since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                added = file.read()
        except FileNotFoundError:
            return
        # A line that is still being written is read the next time.
        whole = added[: added.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            yield MetricsLine(int(record["step"]), record["data"])


def steps_of(files: Iterable[Path]) -> list[MetricsLine]:
    """Read verl's metrics of several starts, the earliest first, in the order of the steps."""
    # A start that continued from a checkpoint repeated the steps after it: its lines count.
    steps = {step.number: step for file in files for step in Tail(file).new()}
    return [steps[number] for number in sorted(steps)]


def first_fault(folder: Path) -> str | None:
    """Return the earliest fault of a reward, or None."""
    try:
        # The earliest is the cause; others often follow from it.
        faults = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    return str(json.loads(faults[0].read_bytes())["fault"]) if faults else None


def groups_of(dump: Path) -> list[dict[str, Any]]:
    """Read a step's samples as verl wrote them; return one record per prompt, with all outputs."""
    groups: dict[str, dict[str, Any]] = {}
    for line in dump.read_bytes().splitlines():
        sample = json.loads(line)
        # The rest of the uid is the number of the sample.
        key = str(sample["uid"]).split("_")[0]
        group = groups.setdefault(key, {"prompt": sample["input"], "outputs": []})
        group["outputs"].append({"text": sample["output"], "reward": sample["score"]})
    return list(groups.values())


def episode_groups(dump: Path) -> list[dict[str, Any]]:
    """Read a step's episodes as the sampler wrote them, one record per task."""
    return [json.loads(line) for line in dump.read_bytes().splitlines()]


def episode_evaluation(samples: Path, step: int) -> dict[str, float]:
    """Read the metrics of a validation with an agent, as the sampler wrote them."""
    file = samples / EVALUATION.format(step=step)
    if not file.exists():
        return {}
    numbers: dict[str, float] = json.loads(file.read_bytes())
    return {f"eval/{name.removeprefix(METRIC)}": value for name, value in numbers.items()}


class StepRow(NamedTuple):
    """The metrics and the timings of one step."""

    metrics: dict[str, float]
    clock: dict[str, float]


def step_row(data: Mapping[str, object], algorithm: VeRLAlgorithm) -> StepRow:
    """Return a line of verl's metrics under our names; values that are not numbers are dropped."""
    kl = ALGORITHMS[algorithm].verl_kl
    numbers = {k: float(v) for k, v in data.items() if isinstance(v, int | float)}
    named = {ours: numbers[theirs] for ours, theirs in NAMES.items() if theirs in numbers}
    if kl in numbers:
        named["kl"] = numbers[kl]
    named |= {k: v for k, v in numbers.items() if k.startswith("reward/")}
    of_episodes = {k: v for k, v in numbers.items() if k.startswith(METRIC)}
    if of_episodes:  # they count episodes; verl counts rows
        named.pop("cut_off", None)
        named |= {k.removeprefix(METRIC): v for k, v in of_episodes.items()}
    named |= _validated(numbers)
    # Each number once: what has one of our names does not appear under verl's as well.
    taken = {*NAMES.values(), *named, *of_episodes}
    clock = {OWN + k: v for k, v in numbers.items() if k.startswith(CLOCK)}
    others = {OWN + k: v for k, v in numbers.items() if not k.startswith(CLOCK) and k not in taken}
    seconds = numbers.get("timing_s/step", 0.0)
    tokens = numbers.get("perf/total_num_tokens", 0.0)
    clock |= {"seconds": seconds}
    if seconds > 0:
        clock["tokens_per_second"] = tokens / seconds
    return StepRow(named | others, clock)


def _validated(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return a validation's rewards, which have keys such as `val-core/<source>/reward/mean@1`.

    All sources count equally; their names may contain slashes.
    """
    held: dict[str, list[float]] = {}
    for key, value in numbers.items():
        kind, *parts = key.split("/")
        if kind in {"val-core", "val-aux"} and "reward" in parts and parts[-1][:5] == "mean@":
            # From "reward" on, because a source before it may contain slashes.
            name = "/".join(parts[parts.index("reward") : -1])
            held.setdefault(f"eval/{name}", []).append(value)
    return {name: fmean(values) for name, values in held.items()}
