"""Runs engines, each in its own process, and reads from them what each step took.

A worker sets itself up, then waits for "go" on its standard input, takes a step and reports it.
The benchmarks define what a step is.
"""

# ruff: noqa: ANN401 - a wrapped method takes and returns anything

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}
"""Environment of the workers: nothing is downloaded during a measurement."""
ANSWER = "answer: "
"""Marks a worker's lines among those that libraries print."""
ENGINES = ("trl", "ours")
Steps = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Race:
    """A case that both engines run."""

    script: str
    """The benchmark's file; with `--worker ENGINE CASE` it is the worker of one engine."""
    case: str
    title: str
    threads: int
    dtype: str
    target: float
    """How many times TRL's speed is asked for; 0 where nothing is."""
    measure: str = "tokens"
    """What is counted a second."""
    engines: tuple[str, ...] = ENGINES
    apart: bool = False
    """Whether an engine starts after the other has ended, where memory does not hold both."""


def race(race: Race, steps: int) -> dict[str, Steps]:
    """Run the engines, print what they took, and return it; the first step warms up.

    They take their steps in turn, or all steps of one and then all of the other.
    """
    print(f"\n{race.title}\n  load average {os.getloadavg()[0]:.1f}", flush=True)
    print("  " + floor(race.dtype, race.threads), flush=True)
    seen: dict[str, Steps] = {}
    peaks: dict[str, float] = {}
    for engines in [(engine,) for engine in race.engines] if race.apart else [race.engines]:
        workers = {engine: _start(race, engine, steps) for engine in engines}
        seen |= {engine: [] for engine in workers}
        for _ in range(steps):
            for engine, worker in workers.items():
                seen[engine].append(_turn(worker))
        for engine, worker in workers.items():
            peaks[engine] = _turn(worker)["peak_gb"]
            worker.wait()
            _report(engine, seen[engine][1:], peaks[engine])
    wanted = f" (asked for {race.target:g})" if race.target else ""
    for engine in [name for name in peaks if name != "trl" and "trl" in peaks]:
        by_wall, by_cpu = (
            _ratio(seen[engine], seen["trl"], race.measure, seconds) for seconds in ("wall", "cpu")
        )
        print(
            f"  {engine} / TRL, {race.measure} a second: {by_wall} by wall{wanted}, {by_cpu} by "
            f"CPU; peak memory {peaks[engine] / peaks['trl']:.0%}",
            flush=True,
        )
    return {engine: taken[1:] for engine, taken in seen.items()}


def _report(engine: str, steps: Steps, peak: float) -> None:
    """Print one engine's medians."""
    parts = [key for key in steps[0] if key not in ("tokens", "samples", "wall", "cpu")]
    split = ", ".join(f"{key} {statistics.median(s[key] for s in steps):.2f}" for key in parts)
    walls = [s["wall"] for s in steps]
    print(
        f"  {engine:4}: {statistics.median(walls):.2f} s a step [{min(walls):.2f}, "
        f"{max(walls):.2f}] ({split}), {_rate(steps, 'samples', 'wall'):.2f} samples/s, "
        f"{_rate(steps, 'tokens', 'wall'):.1f} tokens/s, "
        f"{_rate(steps, 'tokens', 'cpu'):.1f} tokens/CPU s, "
        f"{statistics.median(s['tokens'] for s in steps):.0f} tokens, peak {peak:.2f} GB",
        flush=True,
    )


def _rate(steps: Steps, measure: str, seconds: str) -> float:
    """Return the median of the steps' speeds."""
    return statistics.median(s[measure] / s[seconds] for s in steps)


def _ratio(ours: Steps, trl: Steps, measure: str, seconds: str) -> str:
    """Return the ratio of the medians, and the range of the rounds' own ratios."""
    ours, trl = ours[1:], trl[1:]
    rounds = [
        _rate([mine], measure, seconds) / _rate([theirs], measure, seconds)
        for mine, theirs in zip(ours, trl, strict=True)
    ]
    ratio = _rate(ours, measure, seconds) / _rate(trl, measure, seconds)
    return f"{ratio:.2f} [{min(rounds):.2f}, {max(rounds):.2f}]"


def _start(race: Race, engine: str, steps: int) -> subprocess.Popen[str]:
    """Start a worker, which waits for its first turn."""
    return subprocess.Popen(
        [sys.executable, race.script, "--worker", engine, race.case, "--steps", str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("BENCH_DEBUG") else subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(race.threads)},
        text=True,
    )


def _turn(worker: subprocess.Popen[str]) -> dict[str, float]:
    """Let a worker take one step; return its numbers."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith(ANSWER):
            numbers: dict[str, float] = json.loads(line.removeprefix(ANSWER))
            return numbers
    raise SystemExit("a worker died; is trl installed? (pip install 'orbiter-train[bench]')")


def tell(**numbers: float) -> None:
    """Send the numbers of a step to the parent."""
    print(ANSWER + json.dumps(numbers), flush=True)


def await_turn() -> None:
    """Wait until the parent says "go"; end the process if the parent has ended."""
    if not sys.stdin.readline():
        raise SystemExit


def say_peak() -> None:
    """Send the largest resident set, in GB, when asked after the last step."""
    await_turn()
    tell(peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time spent inside to `part`."""
    began = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began


def wrap(owner: Any, method: str, seconds: dict[str, float], part: str) -> None:
    """Time every call of a method."""
    inner: Callable[..., Any] = getattr(owner, method)

    def outer(*args: Any, **kwargs: Any) -> Any:
        with timed(seconds, part):
            return inner(*args, **kwargs)

    setattr(owner, method, outer)


def floor(dtype: str, threads: int) -> str:
    """Measure this machine's peaks: products in the arithmetic asked for, and reading memory."""
    import torch

    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    left, right = torch.randn(1024, 576).to(kind), torch.randn(1536, 576).to(kind)
    product = _best(lambda: torch.nn.functional.linear(left, right))
    block = torch.randn(1 << 26)
    read = _best(block.sum)
    return (
        f"peaks of this machine now: {2 * 1024 * 576 * 1536 / product / 1e9:.0f} GFLOP/s "
        f"({dtype}, {threads} thread(s)), reading {block.nbytes / read / 1e9:.0f} GB/s"
    )


def _best(call: Callable[[], object], times: int = 10) -> float:
    """Return the shortest of several runs, in seconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "transformers", "trl")
    try:
        return ", ".join(f"{name} {version(name)}" for name in names)
    except PackageNotFoundError as missing:
        raise SystemExit(f"{missing}: pip install 'orbiter-train[bench]'") from missing
