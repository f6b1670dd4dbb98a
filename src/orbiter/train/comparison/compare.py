"""Compare two models on the same held-out items, look after look, until enough is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import pstdev
from typing import TYPE_CHECKING, NamedTuple

from orbiter.train.checks import WholeNumber
from orbiter.train.comparison.contestant import (
    Contestant,
    Outcome,
    contestant_of,
)
from orbiter.train.comparison.requirement import TOTAL, Requirement, Verdict, parse_requirement
from orbiter.train.comparison.result import (
    DIFFER,
    CheckedRequirement,
    Comparison,
    Plan,
    Side,
    Slice,
)
from orbiter.train.comparison.slices import slice_field, slices_of
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation import (
    Interval,
    detectable_difference,
    interval_at,
    mean_interval,
    plan_looks,
)
from orbiter.train.seeding import sub_random
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.environments import ENVIRONMENT
from orbiter.train.verl.reward import RewardSpec

if TYPE_CHECKING:
    from orbiter.train.evaluation import Looks

FEWEST = 20
"""Fewest items for which there is another look."""
LOOKS = 5
OF_THE_AGENT = (ENVIRONMENT, "step_rewards")
"""Rewards that an environment or an agent gives itself."""
ENOUGH_FOR_SPREAD = 5
"""Fewest pairs whose spread says something."""


async def compare(
    a: object,
    b: object,
    items: Sequence[object],
    rewards: Sequence[RewardSpec] = (),
    *,
    config: VeRLConfig | None = None,
    agent: object = None,
    environment: object = None,
    require: Sequence[str | Requirement] = (),
    allow_regressions: bool = True,
    by: str | None = None,
    samples: int = 0,
    looks: int = LOOKS,
    confidence: float = 0.95,
    seed: int = 0,
    on_plan: Callable[[Plan], object] | None = None,
    on_look: Callable[[Comparison], object] | None = None,
) -> Comparison:
    """Measure how much better B is than A, item by item, and whether it meets the requirements.

    The items are answered in a random order. After each look the comparison stops if every
    requirement is decided, or without requirements, if the interval of the difference does not
    hold 0. The intervals allow for the looks: see `evaluation.sequential`.

    Args:
        a: The present model: a name, a folder, an adapter's folder, or a `ChatModel`.
        b: The model that may replace it.
        items: Held-out items, prompts, or tasks of an agent.
        rewards: Score the answers; the total is their weighted sum.
        config: Settings for models on this machine, such as max_response_length.
        agent: Plays the tasks with the model, as in `VeRLTrainer`.
        environment: As in `VeRLTrainer`.
        require: Conditions on differences, such as "reward > 0".
        allow_regressions: False requires that B is worse in no slice.
        by: Field whose values are the slices; by default task_type or category.
        samples: Answers drawn for each item; 0 answers once, greedily.
        looks: Planned looks; with 1 the models are loaded one after the other.
        confidence: How often all intervals of the total hold the true difference.
        seed: Seed of the order of the items.
        on_plan: Called with the plan before the first answer.
        on_look: Called with the preliminary result after each look but the last.

    Raises:
        ConfigError, DataError: an argument is wrong, or no item has a reward on both sides.
        StorageError: there is no model of this name.
        CallbackError: a reward, the agent or the endpoint failed.
    """
    WholeNumber(at_least=0)("samples", samples)
    played = _Played(agent, environment)
    required = _requirements(require, rewards, played)
    plan = _plan(list(items), by, looks, confidence, slices=not allow_regressions)
    if on_plan is not None:
        on_plan(plan)
    sides = _contestants((a, b), config or VeRLConfig(), rewards, played, samples=samples)
    state = _State(plan, _shuffled(items, seed), required, allow_regressions, seed)
    return await state.run(sides, on_look)


class _Played(NamedTuple):
    """What works on the tasks besides the model."""

    agent: object
    environment: object


def _plan(
    tasks: Sequence[object], by: str | None, looks: int, confidence: float, *, slices: bool
) -> Plan:
    """Return what the comparison will do; `slices` says that it needs them."""
    WholeNumber(at_least=1)("looks", looks)
    if not tasks:
        raise DataError("there are no items to compare the models on")
    field = slice_field(tasks, by)
    if field is None and slices:
        raise ConfigError(
            "allow_regressions=False needs slices: name the field of the items with by="
        )
    planned = plan_looks(len(tasks), looks, confidence=confidence, fewest=FEWEST)
    return Plan(
        looks=planned,
        detectable={share: detectable_difference(planned, share**0.5) for share in DIFFER},
        by=field,
    )


def _contestants(
    models: tuple[object, object],
    config: VeRLConfig,
    rewards: Sequence[RewardSpec],
    played: _Played,
    *,
    samples: int,
) -> list[Contestant]:
    # The trainers of a comparison write nothing, and never continue from a checkpoint.
    quiet = replace(
        config, output_dir=None, resume=False, save_every=0, trackers=(), eval_every=None
    )
    return [
        contestant_of(name, model, quiet, rewards, samples=samples, **played._asdict())
        for name, model in zip("AB", models, strict=True)
    ]


def _shuffled(items: Sequence[object], seed: int) -> list[object]:
    """Return the items in a random order, since files are often sorted by type."""
    tasks = list(items)
    # Seeded, so that a second comparison sees the items in the same order.
    sub_random(seed, "compare").shuffle(tasks)
    return tasks


def _requirements(
    require: Sequence[str | Requirement], rewards: Sequence[RewardSpec], played: _Played
) -> list[Requirement]:
    if isinstance(require, str):
        raise ConfigError(f"require must be a list of texts, got the text {require!r}")
    names = [spec.name for spec in rewards]
    if played != (None, None):
        names += OF_THE_AGENT
    return [parse_requirement(str(each), names) for each in require]


@dataclass(slots=True)
class _State:
    """A comparison in progress."""

    plan: Plan
    tasks: Sequence[object]
    required: Sequence[Requirement]
    allow_regressions: bool
    seed: int

    async def run(
        self, sides: list[Contestant], on_look: Callable[[Comparison], object] | None
    ) -> Comparison:
        done: tuple[list[Outcome], list[Outcome]] = ([], [])
        first, second = sides
        # Both before any work: a mistake in B's name must not cost a look of A's answers.
        for side in sides:
            await side.check(self.tasks[0])
        begun = 0
        for look, size in enumerate(self.plan.looks.sizes):
            # Only the items that this look adds; answers of earlier looks are kept.
            part = self.tasks[begun:size]
            done[0].extend(await first.outcomes(part))
            if len(self.plan.looks.sizes) == 1:
                first.close()  # before the second one is loaded
            done[1].extend(await second.outcomes(part))
            begun = size
            result = self._result(look, first, second, *done)
            if size == self.plan.looks.sizes[-1] or self._decided(result):
                return result
            if on_look is not None:
                on_look(result)
        raise AssertionError("the last look returns")

    def _decided(self, result: Comparison) -> bool:
        # One unmet requirement decides it, whatever the others are.
        if result.verdict == "not met":
            return True
        if not self.allow_regressions:  # only all items can show that no slice got worse
            return False
        if self.required:
            return all(checked.verdict == "met" for checked in result.requirements)
        return not result.difference.low <= 0 <= result.difference.high

    def _result(
        self, look: int, a: Contestant, b: Contestant,
        of_a: list[Outcome], of_b: list[Outcome],
    ) -> Comparison:  # fmt: skip
        looks = self.plan.looks
        # The tail that the plan gives this look, so that looking early is not free.
        tail = looks.tails[look]
        values = {name: _paired(of_a, of_b, name) for name in _names(of_a, of_b)}
        differences = {
            name: interval_at([y for _, y in pairs], [x for x, _ in pairs], tail=tail)
            for name, pairs in values.items()
            if pairs
        }
        if TOTAL not in differences:
            raise DataError("no item has a reward from both models: every pair lacks one of them")
        sides = [_side(each, done, looks.confidence) for each, done in ((a, of_a), (b, of_b))]
        # Failed items leave the pairs, so failing on hard ones could look like progress.
        more_failed = sides[1].failed > sides[0].failed
        return Comparison(
            a=sides[0],
            b=sides[1],
            plan=self.plan,
            items=len(of_a),
            differences=differences,
            slices=self._slices(look, of_a, of_b),
            requirements=[
                _checked(each, differences.get(each.reward), more_failed=more_failed)
                for each in self.required
            ],
            detectable=_detectable(looks, values[TOTAL]),
            tasks=self.tasks[: len(of_a)],
            outcomes_a=list(of_a),
            outcomes_b=list(of_b),
            allow_regressions=self.allow_regressions,
        )

    def _slices(self, look: int, of_a: list[Outcome], of_b: list[Outcome]) -> list[Slice]:
        """Return the difference in each slice; the intervals are corrected for their number."""
        if self.plan.by is None:
            return []
        every = slices_of(self.tasks, self.plan.by)
        # Bonferroni: among many slices, one differs by chance.
        tail = self.plan.looks.corrected(len(every))[look]
        parts = []
        for value, indices in every.items():
            # Slices are counted over all items, so that their number does not change from look to
            # look.
            seen = [index for index in indices if index < len(of_a)]
            pairs = _paired([of_a[i] for i in seen], [of_b[i] for i in seen], TOTAL)
            if pairs:
                difference = interval_at(
                    [y for _, y in pairs], [x for x, _ in pairs], tail=tail, seed=self.seed
                )
                parts.append(Slice(value=value, difference=difference))
        return parts


def _checked(
    requirement: Requirement, difference: Interval | None, *, more_failed: bool
) -> CheckedRequirement:
    if difference is None:
        return CheckedRequirement(
            requirement=requirement, verdict="undecided", why="no item has this reward"
        )
    verdict: Verdict = requirement.verdict(difference)
    if verdict == "met" and more_failed:
        why = "B failed on more items than A, and failed items are not in the difference"
        return CheckedRequirement(requirement=requirement, verdict="undecided", why=why)
    return CheckedRequirement(requirement=requirement, verdict=verdict)


def _names(of_a: Sequence[Outcome], of_b: Sequence[Outcome]) -> list[str]:
    parts = dict.fromkeys(name for outcome in (*of_a, *of_b) for name in outcome.rewards)
    return [TOTAL, *(f"{TOTAL}/{name}" for name in parts)]


def _value(outcome: Outcome, name: str) -> float | None:
    if name == TOTAL:
        return outcome.total
    return outcome.rewards.get(name.removeprefix(f"{TOTAL}/"))


def _paired(
    of_a: Sequence[Outcome], of_b: Sequence[Outcome], name: str
) -> list[tuple[float, float]]:
    """Return the values of both models on the items that have one from both."""
    both = [(_value(x, name), _value(y, name)) for x, y in zip(of_a, of_b, strict=True)]
    return [(x, y) for x, y in both if x is not None and y is not None]


def _side(contestant: Contestant, outcomes: Sequence[Outcome], confidence: float) -> Side:
    means = {}
    for name in _names(outcomes, ()):
        known = [value for each in outcomes if (value := _value(each, name)) is not None]
        if known:
            means[name] = mean_interval(known, confidence=confidence)
    failed = sum(outcome.total is None for outcome in outcomes)
    return Side(name=contestant.name, means=means, failed=failed, cost=contestant.cost)


def _detectable(looks: Looks, pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < ENOUGH_FOR_SPREAD:
        return None
    # pstdev with Bessel's correction, for a sample.
    spread = pstdev([y - x for x, y in pairs]) * math.sqrt(len(pairs) / (len(pairs) - 1))
    return detectable_difference(looks, spread) if spread else None
