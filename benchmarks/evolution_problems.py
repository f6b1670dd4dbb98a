"""The problems of the evolution benchmarks: three well-trodden ones, two chosen before any tuning.

Every problem is a space of knobs, a score to maximise and a target; candidates are sequences of
values in the space's order, so that every library can be given its own favourite encoding.

`tuning` and `leading` were committed before any setting of ours was tried on any problem, and are
reported as they fall.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orbiter.train.evolution.strategies.space import Choice, Float, Int, Knob, draw

Values = Sequence[Any]


@dataclass(frozen=True)
class Problem:
    """Something to maximise."""

    name: str
    space: Mapping[str, Knob]
    score: Callable[[Values], float]
    target: float
    starts: Callable[[random.Random], Values] | None = None
    """Where the problem says where to start from."""

    def sample(self, random_: random.Random) -> list[Any]:
        """Return a candidate to start from."""
        if self.starts is not None:
            return list(self.starts(random_))
        return [draw(knob, random_) for knob in self.space.values()]


def knobs(count: int, knob: Knob) -> dict[str, Knob]:
    return {f"x{i}": knob for i in range(count)}


LETTERS = "abcdefghijklmnopqrstuvwxyz "
TEXT = "methinks it is like a weasel"


def _string(values: Values) -> float:
    return sum(a == b for a, b in zip(values, TEXT, strict=True)) / len(TEXT)


def _rastrigin(values: Values) -> float:
    return -sum(10 + v * v - 10 * math.cos(2 * math.pi * v) for v in values)


class Snippets:
    """60 instructions, 30 instances: one passes where its 2 or 3 are on and its 1 or 2 foes off.

    More than 25 instructions are too long a prompt, and fail everything.
    """

    count, instances, longest = 60, 30, 25

    def __init__(self, seed: int = 11) -> None:
        draws = random.Random(seed)
        good = set(draws.sample(range(self.count), 20))
        bad = [i for i in range(self.count) if i not in good]
        ordered = sorted(good)
        self.needed = [draws.sample(ordered, draws.randint(2, 3)) for _ in range(self.instances)]
        self.foes = [draws.sample(bad, draws.randint(1, 2)) for _ in range(self.instances)]

    def passes(self, on: Values, instance: int) -> bool:
        """Say whether the instance passes with these instructions."""
        return (
            sum(on) <= self.longest
            and all(on[i] for i in self.needed[instance])
            and not any(on[i] for i in self.foes[instance])
        )

    def score(self, on: Values) -> float:
        """Return the share of instances that pass."""
        return sum(self.passes(on, i) for i in range(self.instances)) / self.instances


def _few(random_: random.Random) -> Values:
    """Return a short prompt: 15 % of the instructions."""
    return [int(random_.random() < 0.15) for _ in range(Snippets.count)]


def _tuning(values: Values) -> float:
    """Settings of an imaginary training: smooth in the numbers, two interactions, wide plateaus."""
    rate, batch, width, layers, dropout, momentum, warmup, clip = values[:8]
    optimiser, activation, norm, schedule = values[8:]
    best_rate = {"sgd": 3e-2, "adam": 1e-3, "adamw": 2e-3, "lion": 2e-4}[optimiser]
    loss = 0.25 * math.log10(rate / best_rate) ** 2
    loss += 0.02 * math.log2(batch / 48) ** 2 + 0.015 * math.log2(width / 384) ** 2
    loss += 0.006 * (layers - 7) ** 2 + 0.8 * (dropout - 0.12) ** 2
    loss += 0.6 * (momentum - 0.9) ** 2 + 0.3 * (warmup - 0.08) ** 2
    loss += 0.05 * math.log10(clip / 0.7) ** 2
    loss += {"sgd": 0.1, "adam": 0.03, "adamw": 0.0, "lion": 0.01}[optimiser]
    loss += {"constant": 0.08, "linear": 0.02, "cosine": 0.0, "step": 0.05}[schedule]
    friends = {("gelu", "layer"), ("silu", "rms"), ("relu", "batch")}
    loss += 0.0 if (activation, norm) in friends else 0.06
    loss += {"relu": 0.05, "tanh": 0.12, "gelu": 0.01, "silu": 0.0, "elu": 0.07}[activation]
    return 1 - loss


_TUNING: dict[str, Knob] = {
    "rate": Float(1e-6, 1.0, log=True),
    "batch": Int(1, 1024, log=True),
    "width": Int(16, 4096, log=True),
    "layers": Int(1, 24),
    "dropout": Float(0.0, 0.9),
    "momentum": Float(0.0, 1.0),
    "warmup": Float(0.0, 1.0),
    "clip": Float(1e-3, 100.0, log=True),
    "optimiser": Choice(["sgd", "adam", "adamw", "lion"]),
    "activation": Choice(["relu", "tanh", "gelu", "silu", "elu"]),
    "norm": Choice(["layer", "rms", "batch", "none"]),
    "schedule": Choice(["constant", "linear", "cosine", "step"]),
}

_HIDDEN_BITS = [random.Random(f"bit {i}").randrange(2) for i in range(40)]


def _leading(values: Values) -> float:
    """Share of hidden bits that are right before the first wrong one: each needs those before."""
    for place, (value, bit) in enumerate(zip(values, _HIDDEN_BITS, strict=True)):
        if value != bit:
            return place / len(_HIDDEN_BITS)
    return 1.0


STRING = Problem("string", knobs(len(TEXT), Choice(LETTERS)), _string, 1.0)
TOKENS = Problem("tokens", knobs(60, Choice([0, 1])), Snippets().score, 1.0, _few)
RASTRIGIN = Problem("rastrigin-10", knobs(10, Float(-5.12, 5.12)), _rastrigin, -1.0)
TUNING = Problem("tuning", _TUNING, _tuning, 0.98)
LEADING = Problem("leading", knobs(40, Choice([0, 1])), _leading, 1.0)
PROBLEMS = [STRING, TOKENS, RASTRIGIN, TUNING, LEADING]
