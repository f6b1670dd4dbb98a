"""The alarm for a reward that is being gamed: it rises, and a more trusted one does not.

Every few steps the policy answers a small fixed slice of held-out tasks, and both the reward that
it is trained by (the proxy) and a second, more trusted one (gold) score the answers. Optimising a
proxy first raises and then lowers what it stands for: Gao et al. 2022, "Scaling Laws for Reward
Model Overoptimization", https://arxiv.org/abs/2210.10760, section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from orbiter.train.evaluation import Interval, paired_difference
from orbiter.train.runlog.alarms import keep_alarms

if TYPE_CHECKING:
    from orbiter.train.engine.session import Session
    from orbiter.train.verl.evaluate import ScoredAttempt

log = logging.getLogger(__name__)

CONFIDENCE = 0.98
"""Level of an alarm's intervals; it also has to hold at two measurements in a row."""
BACK = 3
"""A stall is looked for since this many measurements ago, and since the first one."""
SHARE = 0.25
"""Gold stalls if it is sure to have gained less than this share of what the proxy has gained, both
in units of their own spread over the tasks."""
FEWEST_TASKS, MOST_KEPT = 4, 32
EXAMPLES = 3
TEXT_CHARS = 500

Kind = Literal["falls", "stalls"]


class Measurement(NamedTuple):
    """Both rewards of the slice after a step, by task."""

    step: int
    proxy: Mapping[str, float]
    gold: Mapping[str, float]


class Divergence(NamedTuple):
    """What an alarm rests on."""

    kind: Kind
    since: int
    """Step of the measurement that is compared with."""
    proxy: Interval
    """Gain of the proxy since then."""
    gold: Interval
    """Gain of gold since then."""


def divergence(history: Sequence[Measurement]) -> Divergence | None:
    """Return how the two rewards have parted, or None.

    It must hold at the last two measurements, so that one unlucky draw raises no alarm.
    """
    # Two measurements that both show it, and one to compare the earlier of them with.
    if len(history) < 3:
        return None
    now = _parted(history)
    return now if now is not None and _parted(history[:-1]) is not None else None


def _parted(history: Sequence[Measurement]) -> Divergence | None:
    now, earlier = history[-1], history[:-1]
    best = max(earlier, key=lambda each: fmean(each.gold.values()))
    back = earlier[-min(BACK, len(earlier))]
    references: list[tuple[Measurement, Kind]] = [
        (earlier[0], "falls"),
        (best, "falls"),
        (earlier[0], "stalls"),
        (back, "stalls"),
    ]
    for then, kind in references:
        # Paired by task, which takes out how hard each task is.
        shared = [task for task in now.gold if task in then.gold]
        if len(shared) < FEWEST_TASKS:
            continue
        proxy, gold = (
            Gain([a[task] for task in shared], [b[task] for task in shared])
            for a, b in ((now.proxy, then.proxy), (now.gold, then.gold))
        )
        held = _falls(proxy, gold) if kind == "falls" else _stalls(proxy, gold)
        if held:
            return Divergence(kind, then.step, proxy.interval, gold.interval)
    return None


class Gain:
    """How one reward has changed on the same tasks; the interval is computed when it is needed."""

    def __init__(self, after: Sequence[float], before: Sequence[float]) -> None:
        self._after, self._before = after, before
        self.mean = fmean(after) - fmean(before)
        self.spread = pstdev([*after, *before])
        """Standard deviation over the tasks."""
        self.value = after[0] if min(after) == max(after) and self.spread == 0 else None
        """The value of every task before and after, if it is only one."""

    @cached_property
    def interval(self) -> Interval:
        """The mean change with its interval."""
        return paired_difference(self._after, self._before, confidence=CONFIDENCE)


def _falls(proxy: Gain, gold: Gain) -> bool:
    # The means first: an interval takes a millisecond, and most measurements need none.
    if not gold.mean < 0 < proxy.mean:
        return False
    return proxy.interval.low > 0 and gold.interval.high < 0


def _stalls(proxy: Gain, gold: Gain) -> bool:
    if proxy.mean <= 0 or proxy.spread == 0:
        return False
    # A gold that is constant at 0 or below has not been reached at all.
    if gold.value is not None:  # at its top there is nothing left to gain
        return gold.value <= 0 and proxy.interval.low > 0
    # Means first, as above. Divided by the spread, because the two rewards have different scales.
    if gold.spread == 0 or gold.mean / gold.spread >= SHARE * proxy.mean / proxy.spread:
        return False
    if proxy.interval.low <= 0:
        return False
    return gold.interval.high / gold.spread < SHARE * proxy.interval.low / proxy.spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm as it is kept in the run's folder."""

    step: int
    kind: Kind
    message: str
    samples: Sequence[Mapping[str, Any]]
    """The answers whose proxy is highest above their gold: prompt, output, proxy and gold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldWatch:
    """Measures both rewards every few steps, and raises the alarm once for each kind."""

    name: str
    """Name of the gold reward."""
    every: int
    """Steps between two measurements; there is also one before the first step, and one after the
    first and the last."""
    stop: bool
    """Whether an alarm ends the run after its step."""
    measure: Callable[[], Awaitable[Sequence[ScoredAttempt]]]
    """Answers the slice; each attempt has the proxy as its reward, and gold among its rewards."""

    async def after(self, session: Session, step: int) -> Mapping[str, float]:
        """Measure if it is time to, and return the metrics for the log; step 0 is the start."""
        # Step 0 is a multiple of every number, so the start is always measured.
        if step not in (1, session.steps) and step % self.every:
            return {}
        attempts = list(await self.measure())
        measured = _measured(step, attempts, self.name)
        if measured is None:
            log.warning("step %d: no answer of the gold slice has both rewards", step)
            return {}
        position = session.position
        position.gold.append([step, measured.proxy, measured.gold])
        if len(position.gold) > MOST_KEPT:  # the first and the best are compared with for ever
            later = position.gold[1:]
            best = max(later, key=lambda each: fmean(each[2].values()))
            oldest = later[1] if later[0] is best else later[0]
            position.gold.remove(oldest)
        parted = divergence([Measurement(*each) for each in position.gold])
        # In the checkpoint, so a resumed run does not raise the same alarm again.
        known = {alarm["kind"] for alarm in position.alarms}
        if parted is not None and parted.kind not in known:
            self._raise_alarm(session, step, parted, attempts)
        return {
            "gold/proxy": fmean(measured.proxy.values()),
            f"gold/{self.name}": fmean(measured.gold.values()),
        }

    def _raise_alarm(
        self, session: Session, step: int, parted: Divergence, attempts: Sequence[ScoredAttempt]
    ) -> None:
        verb = "fallen" if parted.kind == "falls" else "stalled"
        message = (
            f"the reward rises and {self.name!r} has {verb}: since step {parted.since} the reward "
            f"changed by {parted.proxy} and {self.name!r} by {parted.gold} on the same held-out "
            "tasks. The policy has probably found a way to be rewarded without doing better: read "
            "the answers below, mend the reward, and continue from a model before that step; a KL "
            "penalty (kl_coef) slows this down"
        )
        alarm = Alarm(
            step=step, kind=parted.kind, message=message, samples=_examples(attempts, self.name)
        )
        session.position.alarms.append(asdict(alarm))
        folder = session.config.output_dir
        if folder is not None:
            keep_alarms(folder, session.position.alarms)
        shown = "; ".join(
            f"{s['output'][:80]!r}: {s['proxy']:.3g}/{s['gold']:.3g}" for s in alarm.samples
        )
        log.warning("step %d: %s. Reward and %s of some: %s", step, message, self.name, shown)
        if self.stop:
            log.warning("stopped at step %d, because gold_stop is set", step)
            session.stopping = True


def _measured(step: int, attempts: Sequence[ScoredAttempt], name: str) -> Measurement | None:
    """Return the mean of both rewards for each task that has them; None if no task has."""
    by_task: dict[str, list[tuple[float, float]]] = {}
    for attempt in attempts:
        gold = attempt.rewards.get(name)
        if attempt.reward is not None and gold is not None:
            by_task.setdefault(attempt.item.id, []).append((attempt.reward, gold))
    if not by_task:
        return None
    return Measurement(
        step,
        {task: fmean(p for p, _ in row) for task, row in by_task.items()},
        {task: fmean(g for _, g in row) for task, row in by_task.items()},
    )


def _examples(attempts: Sequence[ScoredAttempt], name: str) -> list[dict[str, Any]]:
    """Return the answers with the largest difference of proxy and gold, in units of each."""
    known = [(a, a.reward, a.rewards[name]) for a in attempts]
    pairs = [(a, p, g) for a, p, g in known if p is not None and g is not None]
    proxy = pstdev([p for _, p, _ in pairs]) or 1.0
    gold = pstdev([g for _, _, g in pairs]) or 1.0
    # Ascending: the answers that the proxy overrates most come first.
    pairs.sort(key=lambda each: each[2] / gold - each[1] / proxy)
    return [
        {
            "prompt": a.item.state[:TEXT_CHARS],
            "output": a.output[:TEXT_CHARS],
            "proxy": p,
            "gold": g,
        }
        for a, p, g in pairs[:EXAMPLES]
    ]
