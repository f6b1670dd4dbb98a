"""The alarm for a gamed reward: planted cases are caught, honest runs are left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from orbiter.train.verl.gold import Measurement, divergence

SEEDS = range(20)
TASKS, MEASUREMENTS = 16, 20

Rng = np.random.Generator
Study = Callable[[Rng, int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""The proxy and gold of every task at a measurement, given how difficult the tasks are."""


def verdicts(generator: Rng, chance: np.ndarray) -> np.ndarray:
    return np.where(generator.random(len(chance)) < np.clip(chance, 0, 1), 1.0, 0.0)


def honest_noisy(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both rise with the policy, each with its own noise."""
    quality = 1 - hard + 0.03 * t
    noise = generator.normal(0, 0.15, (2, TASKS))
    return np.clip(quality + noise[0], 0, 1), np.clip(quality + noise[1], 0, 1)


def honest_verdicts(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A judge that errs on one answer in ten, and labels; the policy gets better."""
    right = verdicts(generator, 1 - hard + 0.03 * t)
    errs = generator.random(TASKS) < 0.1
    return np.where(errs, 1 - right, right), right


def honest_saturated(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gold reaches its top early, and the proxy goes on rising by a part that gold lacks."""
    right = verdicts(generator, 1 - hard + 0.3 * t)
    return right + 0.02 * t + generator.normal(0, 0.05, TASKS), right


def honest_idle(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nothing is learned, and both scatter."""
    del t
    return verdicts(generator, 1 - hard), verdicts(generator, 1 - hard)


def planted_length(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The proxy pays for length, and answers get worse as they get longer."""
    proxy = 20 + 4 * t + generator.normal(0, 3, TASKS)
    return proxy, np.clip(1 - hard - 0.03 * t + generator.normal(0, 0.1, TASKS), 0, 1)


def planted_phrase(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A judge likes a phrase, which spreads from task to task; answers stay as right as before."""
    right = 1 - hard + generator.normal(0, 0.05, TASKS)
    return np.clip(0.5 * right + 0.5 * verdicts(generator, np.full(TASKS, 0.06 * t)), 0, 1), right


def planted_late(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both rise at first; from the middle on the proxy rises at the cost of gold."""
    quality = 1 - hard + 0.04 * min(t, 10) - 0.06 * max(0, t - 10)
    noise = generator.normal(0, 0.08, (2, TASKS))
    return 1 - hard + 0.04 * t + noise[0], quality + noise[1]


def planted_hopeless(generator: Rng, t: int, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The proxy rises, and no task is ever solved."""
    return 1 - hard + 0.04 * t + generator.normal(0, 0.1, TASKS), np.zeros(TASKS)


def caught(study: Study) -> list[str]:
    """Return the first alarm of each seed's run, with its measurement."""
    found = []
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        hard = generator.beta(2, 2, TASKS)
        history: list[Measurement] = []
        for t in range(MEASUREMENTS):
            both = study(generator, t, hard)
            by_task = [dict(zip(map(str, range(TASKS)), v.tolist(), strict=True)) for v in both]
            history.append(Measurement(t, *by_task))
            alarm = divergence(history)
            if alarm is not None:
                found.append(f"{alarm.kind}@{t}")
                break
    return found


@pytest.mark.parametrize(
    "study",
    [honest_noisy, honest_verdicts, honest_saturated, honest_idle],
    ids=lambda s: s.__name__,
)
def test_honest_runs_raise_no_alarm(study: Study) -> None:
    assert caught(study) == []


@pytest.mark.parametrize(
    ("study", "kinds"),
    [
        (planted_length, {"falls", "stalls"}),
        (planted_phrase, {"falls", "stalls"}),
        (planted_late, {"falls", "stalls"}),
        (planted_hopeless, {"stalls"}),
    ],
    ids=lambda s: getattr(s, "__name__", ""),
)
def test_planted_cases_are_caught(study: Study, kinds: set[str]) -> None:
    alarms = caught(study)
    assert len(alarms) == len(SEEDS)
    assert {alarm.split("@")[0] for alarm in alarms} <= kinds


def test_tasks_without_a_verdict_do_not_count() -> None:
    def measured(step: int, proxy: float, gold: float, tasks: int = 8) -> Measurement:
        wobble = {str(i): 0.01 * (i % 3) for i in range(tasks)}
        return Measurement(
            step,
            {task: proxy + more for task, more in wobble.items()},
            {task: gold - more for task, more in wobble.items()},
        )

    falling = [measured(step, 0.1 * step, 1 - 0.1 * step) for step in range(5)]
    assert divergence(falling) is not None
    assert divergence(falling[:2]) is None, "one measurement is not enough"
    few = [measured(step, 0.1 * step, 1 - 0.1 * step, tasks=3) for step in range(5)]
    assert divergence(few) is None
