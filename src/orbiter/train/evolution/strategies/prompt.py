"""Evolution of an agent's prompts by reflection: a model reads the failures and rewrites the text.

A child is first tried on the failures of its parent that the model was shown, then on the instances
that it could lose; it is abandoned once it falls too far below its parent's cached scores. Parents
are taken from the Pareto front over instances, the newest of equals first: a rewriting that changed
no score yet may be the first half of one that does. Reflection with a front per instance is GEPA's
idea, Agrawal et al. 2025, https://arxiv.org/abs/2507.19457. Unlike there, parents are not run
again, children are raced over all instances, and equally good children are accepted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from typing_extensions import override

from orbiter.train.callback import map_bounded, prepare
from orbiter.train.checks import is_finite_number
from orbiter.train.errors import CallbackError, ConfigError, DataError, TrainError, boundary
from orbiter.train.evolution.front import Race, Vector, newest_of_front
from orbiter.train.evolution.strategies.reflection import (
    Limits,
    UnusableRewriteError,
    rewrite,
    shown_input,
)
from orbiter.train.evolution.strategy import EvolutionStrategy, Score
from orbiter.train.llm.chat import ChatModel, sample_of
from orbiter.train.llm.failure import BudgetError

I = TypeVar("I")  # noqa: E741 - an instance
Texts: TypeAlias = "str | dict[str, str]"

BEST_SHARE = 0.6
"""How often a parent is one of the best; otherwise it is any member of the front."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A metric's score with a reason."""

    score: float
    feedback: str = ""
    """Text on what was right or wrong, for the reflecting model."""


class PromptEvolution(EvolutionStrategy[Texts], Generic[I]):
    """Improves an agent's instructions: one text, or several by name.

    Example::

        async def agent(texts, question):
            return await chat(system=texts, user=question.text)

        def metric(question, output):
            return float(question.answer in output)

        strategy = PromptEvolution(agent, questions, metric, model=reflecting_model)
        config = EvolutionConfig(epochs=20, mode="steady", max_cost=2_000, target=1.0)
        result = await EvolutionPipeline(config, strategy).run(["Answer the question."])
    """

    def __init__(
        self,
        agent: Callable[[Texts, I], object | Awaitable[object]],
        instances: Sequence[I] | Mapping[str, I],
        metric: Callable[[I, object], float | Verdict | Awaitable[float | Verdict]],
        model: ChatModel,
        *,
        minibatch: int = 3,
        slack: float = 0.5,
        perfect: float = 1.0,
        worst: float = 0.0,
        max_chars: int = 6_000,
        copied_words: int = 8,
        trace_chars: int = 1_500,
        price: float | None = None,
        show: Callable[[I], str] | None = None,
    ) -> None:
        """Set up a search.

        Args:
            agent: runs the agent with these texts on an instance, and returns its output.
            instances: the tasks that it is tried on.
            metric: scores an output, between `worst` and `perfect`; a `Verdict` gives a reason.
            model: rewrites; any async callable from messages to text.
            minibatch: failures that the model is shown at once, and a child is tried on first.
            slack: how many instances a child may fall below its parent before it is abandoned.
            perfect: the score of an instance with nothing left to improve.
            worst: the score of an instance that raised, or that an abandoned child never tried.
            max_chars: the longest text allowed.
            copied_words: a text that copies this many words in a row from an instance is refused.
            trace_chars: how much of an input, an output, a feedback the model is shown.
            price: the cost of one rollout; the model's own costs are added. None: `max_cost`
                counts rollouts, and the model's costs are left out.
            show: the text of an instance for the reflecting model. By default a `TrajectoryItem`
                shows its state, and a dict or dataclass hides fields such as "answer": the model
                must not see the solution.

        Raises:
            ConfigError: there are no instances, or a setting is out of range.
        """
        if isinstance(instances, Mapping):
            self.instances: dict[str, I] = dict(instances)
        else:
            self.instances = {str(i): item for i, item in enumerate(instances)}
        if not self.instances:
            raise ConfigError("there are no instances to try a text on: pass at least one")
        if minibatch < 1 or not worst < perfect or slack < 0:
            raise ConfigError(
                "minibatch must be at least 1, slack at least 0 and worst below perfect, got "
                f"{minibatch!r}, {slack!r}, {worst!r} and {perfect!r}"
            )
        self._agent: Callable[[Texts, I], Awaitable[object]] = prepare(agent)
        self._metric: Callable[[I, object], Awaitable[float | Verdict]] = prepare(metric)
        self._model = model
        self._minibatch, self._slack = minibatch, slack * (perfect - worst)
        self._perfect, self._worst = perfect, worst
        self._limits = Limits(max_chars, copied_words)
        self._trace_chars, self._price = trace_chars, price
        self._show = show or shown_input
        self._tasks = [str(item) for item in self.instances.values()]

    @override
    async def evaluate(self, candidate: Texts) -> Score:
        """Try a candidate on the instances, against its parent's scores if it has a parent.

        Instances run concurrently, in waves that double: an abandoned child has cost little.
        A child that is no better on the shown failures and on the instances that it could lose is
        not tried on the parent's other failures: these still count as failed, so that its score is
        at most its parent's and never the best of a run. An instance that raises counts as `worst`.
        """
        _texts_of(candidate)
        parent = self._parent()
        sure, doubtful = self._order(parent)
        trial = _Trial()
        if not parent:
            await self._try_all(candidate, [*sure, *doubtful], trial)
            return self._scored(trial, parent)
        race = Race(parent, self._perfect, self._slack)
        # The first wave holds the failures that the model has just read: a child that does not even
        # solve these is abandoned cheaply.
        for done, wave in _waves(sure, len(self._shown())):
            await self._try_all(candidate, wave, trial)
            for name in wave:
                race.record(name, trial.scores[name])
            if race.is_lost([*sure[done:], *doubtful]):
                return self._abandoned(trial)
        # Only a child that gained something is worth the rollouts on its parent's other failures.
        if race.lead > 0:
            await self._try_all(candidate, doubtful, trial)
        return self._scored(trial, parent)

    @override
    async def mutate(self, candidate: Texts) -> Texts:
        """Let the model rewrite one text, in view of some of the instances that went wrong."""
        context = self.context
        draws = context.rng_for("text", context.child)
        texts = _texts_of(candidate)
        name = draws.choice(list(texts))
        shown = (context.parent_score and context.parent_score.traces) or {}
        try:
            rewriting = await rewrite(
                sample_of(self._model, context.rng.getrandbits(32)),
                texts[name],
                [shown[failed] for failed in self._shown() if failed in shown],
                purpose=f" ({name})" if name else "",
                limits=self._limits,
                tasks=self._tasks,
            )
        except UnusableRewriteError as error:
            self._spend(error.cost)
            raise
        self._spend(rewriting.cost)
        return rewriting.text if isinstance(candidate, str) else {**texts, name: rewriting.text}

    def _spend(self, cost: float) -> None:
        if self._price is not None:  # otherwise max_cost counts rollouts
            self.context.cost += cost

    def crossover(self, first: Texts, second: Texts) -> Texts | None:
        """Merge two agents: of the texts that differ, take some from each.

        None if fewer than two texts differ: then there is nothing to merge, and one is rewritten.
        """
        if isinstance(first, str) or isinstance(second, str):
            return None
        differ = [name for name in first if name in second and first[name] != second[name]]
        if len(differ) < 2:
            return None
        random_ = self.context.rng
        taken = random_.sample(differ, random_.randrange(1, len(differ)))
        return {**first, **{name: second[name] for name in taken}}

    mutates_crossed: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True

    @override
    async def select(self, population: Sequence[Texts], scores: Sequence[float]) -> list[Texts]:
        """Keep the front, then the best of the others, the newest of equals first."""
        tried = self._tried_on_all(self.context.scores)
        front = self._front(tried)
        rest = sorted((i for i in tried if i not in set(front)), key=lambda i: (-scores[i], -i))
        front.sort(key=lambda i: (-scores[i], -i))
        most = max(len(front), self.context.places)
        return [population[i] for i in [*front, *rest][:most]]

    @override
    def choose_parent(self, population: Sequence[Texts], scores: Sequence[Score]) -> int | None:
        """Return one of the best, or sometimes any member of the front."""
        tried = self._tried_on_all(scores)
        if not tried:
            return None
        random_ = self.context.rng
        if random_.random() < BEST_SHARE:
            best = max(scores[i].value for i in tried)
            return random_.choice([i for i in tried if scores[i].value == best])
        return random_.choice(self._front(tried))

    def _parent(self) -> dict[str, float]:
        """Return the parent's scores to race against; none for an independent replicate."""
        context = self.context
        if context.replicate or context.parent_score is None:
            return {}
        scores = context.parent_score.instances or {}
        # An abandoned parent was not tried on all, so there is no race against it.
        return dict(scores) if len(scores) == len(self.instances) else {}

    def _order(self, parent: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """Return the instances to try first, and those to try only after a gain on the first.

        First come those that the model was shown, then those that could be lost. The parent's other
        failures are tried only after a gain.
        """
        order = list(self.instances)
        self.context.rng.shuffle(order)
        shown = self._shown() if parent else []
        others = [name for name in order if name not in shown]
        doubtful = [name for name in others if parent.get(name, self._perfect) < self._perfect]
        return [*shown, *(name for name in others if name not in doubtful)], doubtful

    def _shown(self) -> list[str]:
        """Return the failures of the parent that the model is shown for this child.

        The result is the same in every call for a child, and empty without a parent's score.
        """
        context = self.context
        parent = (context.parent_score and context.parent_score.instances) or {}
        failed = sorted(name for name, score in parent.items() if score < self._perfect)
        return context.rng_for("minibatch", context.child).sample(
            failed, min(self._minibatch, len(failed))
        )

    async def _try_all(self, candidate: Texts, names: Sequence[str], trial: _Trial) -> None:
        """Run a candidate on instances at once, within the limit of `concurrency`.

        Raises:
            CallbackError: every instance of the candidate raised so far: the candidate or the
                endpoint is broken.
        """
        limiter = self.context.limiter
        self._reuse_earlier(names, trial)

        async def one(name: str) -> _Attempt:
            async with limiter:
                return await self._try(candidate, name)

        open_names = [name for name in names if name not in trial.scores]
        attempts = await map_bounded(open_names, one, concurrency=max(1, len(open_names)))
        for name, attempt in zip(open_names, attempts, strict=True):
            trial.scores[name] = attempt.score
            trial.rollouts += 1
            if attempt.trace:
                trial.traces[name] = attempt.trace
            if attempt.error is not None:
                trial.failed[name] = attempt.error
        # Nothing but exceptions: a broken endpoint or candidate, not a bad score.
        if trial.failed and len(trial.failed) == len(trial.scores):
            self.context.cost += self._cost(trial)
            raise CallbackError(next(iter(trial.failed.values())))

    def _reuse_earlier(self, names: Sequence[str], trial: _Trial) -> None:
        """Reuse the results that an earlier process measured before the resume, except failures."""
        earlier = self.context.earlier
        if earlier is None:
            return
        for name in names:
            score = (earlier.instances or {}).get(name)
            if score is not None and name not in (earlier.failed or {}):
                trial.scores[name] = score
                if trace := (earlier.traces or {}).get(name):
                    trial.traces[name] = trace

    async def _try(self, candidate: Texts, name: str) -> _Attempt:
        """Run one instance; an error of the agent or the metric is a failed instance."""
        instance = self.instances[name]
        try:
            with boundary(f"the agent, on instance {name!r},"):
                output = await self._agent(candidate, instance)
            with boundary(f"the metric, on instance {name!r},"):
                answer = await self._metric(instance, output)
        except BudgetError:
            raise  # ends the run
        except TrainError as error:
            trace = self._trace(name, None, f"it failed: {error}")
            return _Attempt(self._worst, trace, str(error))
        verdict = answer if isinstance(answer, Verdict) else Verdict(answer)
        if not is_finite_number(verdict.score):
            reason = f"the metric returned {verdict.score!r:.80} on instance {name!r}, not a number"
            return _Attempt(self._worst, self._trace(name, output, reason), reason)
        score = float(verdict.score)
        # Without a trace: there is nothing to improve.
        if score >= self._perfect:
            return _Attempt(score)
        feedback = verdict.feedback or f"score {score:g} of {self._perfect:g}"
        return _Attempt(score, self._trace(name, output, feedback))

    def _abandoned(self, trial: _Trial) -> Score:
        """Return the score of an abandoned child: untried instances count as `worst`."""
        untried = len(self.instances) - len(trial.scores)
        value = sum(trial.scores.values()) + untried * self._worst
        note = f"abandoned with {untried} instances untried"
        return self._score(value, trial, trial.scores, note)

    def _scored(self, trial: _Trial, parent: Mapping[str, float]) -> Score:
        """Return the score of a child that kept up: untried instances get the parent's score."""
        scores = {name: trial.scores.get(name, parent.get(name, 0.0)) for name in self.instances}
        inherited = len(scores) - len(trial.scores)
        before = (self.context.parent_score and self.context.parent_score.traces) or {}
        for name in scores:
            if name not in trial.scores and name in before:
                trial.traces[name] = before[name]
        note = f"{inherited} failures of the parent untried" if inherited else None
        return self._score(sum(scores.values()), trial, scores, note)

    def _score(
        self, total: float, trial: _Trial, scores: Mapping[str, float], note: str | None
    ) -> Score:
        return Score(
            total / len(self.instances),
            scores,
            note,
            trial.traces,
            self._cost(trial),
            trial.failed or None,
        )

    def _cost(self, trial: _Trial) -> float:
        return trial.rollouts * (1.0 if self._price is None else self._price)

    def _trace(self, name: str, output: object, feedback: str) -> str:
        parts = {"input": self._show(self.instances[name])}
        if output is not None:
            parts["output"] = str(output)
        parts["feedback"] = feedback
        lines = [f"{part}: {_cut(text, self._trace_chars)}" for part, text in parts.items()]
        return "\n".join([f"[{name}]", *lines])

    def _is_complete(self, score: Score) -> bool:
        return len(score.instances or {}) == len(self.instances)

    def _tried_on_all(self, scores: Sequence[Score]) -> list[int]:
        self._vectors: dict[int, Vector] = {
            i: tuple((score.instances or {}).values())
            for i, score in enumerate(scores)
            if self._is_complete(score)
        }
        return list(self._vectors)

    def _front(self, tried: Sequence[int]) -> list[int]:
        return [tried[i] for i in newest_of_front([self._vectors[i] for i in tried])]


@dataclass(slots=True)
class _Trial:
    """The results of trying a candidate so far."""

    scores: dict[str, float] = field(default_factory=dict[str, float])
    traces: dict[str, str] = field(default_factory=dict[str, str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Why an instance failed, by its name."""
    rollouts: int = 0


class _Attempt(NamedTuple):
    """The result of trying one instance."""

    score: float
    trace: str = ""
    error: str | None = None


def _texts_of(candidate: Texts) -> dict[str, str]:
    """Return a candidate's texts by name; a single text has the empty name."""
    if isinstance(candidate, str):
        return {"": candidate}
    if not isinstance(candidate, dict) or not candidate:
        raise DataError(
            "a candidate of PromptEvolution must be a text or a dict of texts, got "
            f"{candidate!r:.80}"
        )
    for name, text in candidate.items():
        if not isinstance(text, str):
            raise DataError(f"the candidate's {name!r} must be a text, got {text!r:.80}")
    return dict(candidate)


def _waves(names: Sequence[str], first: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the names in waves of `first`, 1, 2, 4, ... names, each with how many came so far.

    The sizes do not depend on `concurrency`, so the result does not either.
    """
    start, size = 0, max(1, first)
    following = 1
    while start < len(names):
        yield min(start + size, len(names)), names[start : start + size]
        start, size, following = start + size, following, 2 * following


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}... ({len(text) - length} more)"
