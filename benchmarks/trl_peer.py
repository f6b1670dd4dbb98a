"""What the benchmarks against TRL share: command line, timed steps, and settings of its trainers.

Left out: the data and the trainer of each benchmark, and how the engines take turns (`turns.py`).
"""

# ruff: noqa: ANN401 - TRL's trainers and what they are given have no types

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from machine import machine
from turns import Race, await_turn, race, tell, versions

Numbers = dict[str, float]


class PeerCase(Protocol):
    """A setting that both engines run."""

    @property
    def threads(self) -> int:
        """Threads of each engine."""

    @property
    def dtype(self) -> str:
        """What the weights are computed in: "float32" or "bfloat16"."""

    @property
    def target(self) -> float:
        """How many times TRL's speed is asked for; 0 where nothing is."""


C = TypeVar("C", bound=PeerCase)


def run_cases(
    script: str,
    description: str | None,
    cases: Mapping[str, C],
    workers: Mapping[str, Callable[[C, int], None]],
    *,
    prepare: Callable[[C], str] = lambda _: "tokens",
) -> None:
    """Read the command line; race the engines on the cases, or be the worker of one engine.

    Args:
        script: The benchmark's file, which is started again for each worker.
        description: The benchmark's docstring.
        cases: The cases by name.
        workers: Takes the steps of a case, by engine.
        prepare: Makes what a case needs, and returns what is counted a second.
    """
    arguments = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    arguments.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    arguments.add_argument("--steps", type=int, default=6)
    arguments.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        engine, name = options.worker
        workers[engine](cases[name], options.steps)
        return
    print(f"{machine()}, {versions()}")
    for name in options.cases:
        case = cases[name]
        parts = (case.threads, case.dtype, case.target, prepare(case))
        race(Race(script, name, f"{name}: {case}", *parts), options.steps)


@contextmanager
def step() -> Iterator[Numbers]:
    """Wait for the turn, time what is inside, and report the numbers that it fills in."""
    await_turn()
    numbers: Numbers = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield numbers
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    tell(**numbers, **seconds)


def make_turns(numbers: Callable[[], Numbers]) -> Any:
    """Return a callback that holds a trainer of TRL between updates, and times each of them.

    Args:
        numbers: Returns the tokens and samples of the update that has just ended.
    """
    from transformers import TrainerCallback

    class Turns(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
        """Hold the trainer between updates."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.timing = step()
            self.numbers = self.timing.__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.numbers.update(numbers())
            self.timing.__exit__(None, None, None)

    return Turns()


def before_updates(trainer: Any, look: Callable[[Any], None]) -> None:
    """Show `look` the inputs of each update before the trainer runs it."""
    inner = trainer.training_step

    def looked(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        look(inputs)
        return inner(model, inputs, *rest, **named)

    trainer.training_step = looked


def trl_settings(benchmark: str, dtype: str, steps: int, **others: Any) -> dict[str, Any]:
    """Return the settings of TRL's trainers that all benchmarks share, with `others` over them."""
    return {
        "output_dir": os.path.join(os.environ.get("TMPDIR", "."), f"bench-{benchmark}-trl"),
        "max_steps": steps,
        "learning_rate": 1e-6,
        "bf16": dtype == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **others,
    }
