"""Evolution of an agent's texts by reflection: read what went wrong, rewrite, keep what is better.

A child is tried on those instances first that its parent failed and the model was shown, then on
those that could be lost; it is given up as soon as it falls behind its parent's cached scores. Who
holds the front over instances may have children, the newest of equals first: a rewriting that
changed no score yet may be the first half of one that does. The idea of reflection with a front per
instance is GEPA's, Agrawal et al. 2025, https://arxiv.org/abs/2507.19457; parents are not run
again, children are raced over all instances, and equal children are accepted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeAlias, TypeVar

from typing_extensions import override

from orbiter.train.callback import prepare
from orbiter.train.checks import is_finite_number
from orbiter.train.errors import ConfigError, DataError, boundary
from orbiter.train.evolution.front import Race, Vector, newest_of_front
from orbiter.train.evolution.strategies.reflection import Limits, rewrite
from orbiter.train.evolution.strategy import EvolutionStrategy, Score
from orbiter.train.llm.chat import ChatModel, sample_of

I = TypeVar("I")  # noqa: E741 - an instance
Texts: TypeAlias = "str | dict[str, str]"

BEST_SHARE = 0.6
"""How often a parent is one of the best; else it is anybody on the front."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A metric's answer that says why."""

    score: float
    feedback: str = ""
    """What was right or wrong, in words: the reflecting model reads it."""


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
    ) -> None:
        """Set up a search.

        Args:
            agent: runs the agent with these texts on an instance, and returns its output.
            instances: what it is tried on.
            metric: scores an output, between `worst` and `perfect`; a `Verdict` says why.
            model: rewrites; any async callable from messages to text.
            minibatch: failures that the model is shown at once, and a child is tried on first.
            slack: how far a child may fall behind its parent, as instances, before it is given up.
            perfect: the score of an instance that has nothing left to improve.
            worst: the score that instances count with that a child given up was not tried on.
            max_chars: the length of one text.
            copied_words: so many words in a row out of an instance are refused in a text.
            trace_chars: how much of an input, an output, a feedback the model is shown.
            price: what one rollout costs; the model's own costs are added. None: `max_cost`
                counts rollouts, and the model's costs are left out.

        Raises:
            ConfigError: there are no instances, or a setting means nothing.
        """
        if isinstance(instances, Mapping):
            self.instances: dict[str, I] = dict(instances)
        else:
            self.instances = {str(i): item for i, item in enumerate(instances)}
        if not self.instances:
            raise ConfigError("there are no instances to try a text on")
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
        self._tasks = [str(item) for item in self.instances.values()]

    @override
    async def evaluate(self, candidate: Texts) -> Score:
        """Try a candidate, instance by instance, against its parent's scores where it has one.

        One that falls behind is given up. One that is no better, on what the model was shown and on
        what it could lose, is not tried on the parent's other failures: they count as failed still,
        so that its score is at most its parent's and never the best of a run.
        """
        parent = self._parent()
        sure, doubtful = self._order(parent)
        race = Race(parent, self._perfect, self._slack) if parent else None
        trial = _Trial()
        for place, name in enumerate(sure, start=1):
            await self._try(candidate, name, trial)
            if race is not None:
                race.run(name, trial.scores[name])
                if race.is_lost([*sure[place:], *doubtful]):
                    return self._given_up(trial)
        if race is None or race.lead > 0:
            for name in doubtful:
                await self._try(candidate, name, trial)
        return self._scored(trial, parent)

    @override
    async def mutate(self, candidate: Texts) -> Texts:
        """Let the model rewrite one text, in view of some of the instances that went wrong."""
        context = self.context
        draws = context.rng_for("text", context.child)
        texts = {"": candidate} if isinstance(candidate, str) else dict(candidate)
        name = draws.choice(list(texts))
        shown = (context.parent_score and context.parent_score.traces) or {}
        text, cost = await rewrite(
            sample_of(self._model, context.rng.getrandbits(32)),
            texts[name],
            [shown[failed] for failed in self._shown() if failed in shown],
            purpose=f" ({name})" if name else "",
            limits=self._limits,
            tasks=self._tasks,
        )
        context.cost += cost if self._price is not None else 0.0
        return text if isinstance(candidate, str) else {**texts, name: text}

    def crossover(self, first: Texts, second: Texts) -> Texts | None:
        """Merge two agents: of the texts in which they differ, some of one and some of the other.

        None where fewer than two texts differ: there is nothing to merge, and one is rewritten.
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
        """Keep the front, then the best of the rest, the newest of equals first."""
        tried = self._tried_on_all(self.context.scores)
        front = self._front(tried)
        rest = sorted((i for i in tried if i not in set(front)), key=lambda i: (-scores[i], -i))
        front.sort(key=lambda i: (-scores[i], -i))
        most = max(len(front), self.context.places)
        return [population[i] for i in [*front, *rest][:most]]

    @override
    def choose_parent(self, population: Sequence[Texts], scores: Sequence[Score]) -> int | None:
        """Return one of the best, or sometimes anybody on the front."""
        tried = self._tried_on_all(scores)
        if not tried:
            return None
        random_ = self.context.rng
        if random_.random() < BEST_SHARE:
            best = max(scores[i].value for i in tried)
            return random_.choice([i for i in tried if scores[i].value == best])
        return random_.choice(self._front(tried))

    def _parent(self) -> dict[str, float]:
        """Return the parent's scores to race against; none for a second, independent look."""
        context = self.context
        if context.replicate or context.parent_score is None:
            return {}
        scores = context.parent_score.instances or {}
        return dict(scores) if len(scores) == len(self.instances) else {}

    def _order(self, parent: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """Return what to try first, and what only where the first has brought a gain.

        First comes what the model was shown, then what could be lost; other failures are doubtful.
        """
        order = list(self.instances)
        self.context.rng.shuffle(order)
        shown = self._shown() if parent else []
        others = [name for name in order if name not in shown]
        doubtful = [name for name in others if parent.get(name, self._perfect) < self._perfect]
        return [*shown, *(name for name in others if name not in doubtful)], doubtful

    def _shown(self) -> list[str]:
        """Return the failures of the parent that this child is made from: the same in every call.

        Without a parent's score there are none; with a perfect one, any instances.
        """
        context = self.context
        parent = (context.parent_score and context.parent_score.instances) or {}
        failed = sorted(name for name, score in parent.items() if score < self._perfect)
        return context.rng_for("minibatch", context.child).sample(
            failed, min(self._minibatch, len(failed))
        )

    async def _try(self, candidate: Texts, name: str, trial: _Trial) -> None:
        instance = self.instances[name]
        with boundary(f"the agent, on instance {name!r},"):
            output = await self._agent(candidate, instance)
        with boundary(f"the metric, on instance {name!r},"):
            answer = await self._metric(instance, output)
        verdict = answer if isinstance(answer, Verdict) else Verdict(answer)
        if not is_finite_number(verdict.score):
            raise DataError(f"the metric returned {verdict.score!r} on instance {name!r}")
        trial.scores[name] = float(verdict.score)
        if verdict.score < self._perfect:
            trial.traces[name] = self._trace(name, output, verdict)

    def _given_up(self, trial: _Trial) -> Score:
        """Return the score of a child that fell behind: what it was not tried on is lost."""
        untried = len(self.instances) - len(trial.scores)
        value = sum(trial.scores.values()) + untried * self._worst
        said = f"given up with {untried} instances untried"
        return self._score(value, trial, trial.scores, said)

    def _scored(self, trial: _Trial, parent: Mapping[str, float]) -> Score:
        """Return the score of a child that kept up: what it was not tried on is as its parent's."""
        scores = {name: trial.scores.get(name, parent.get(name, 0.0)) for name in self.instances}
        inherited = len(scores) - len(trial.scores)
        before = (self.context.parent_score and self.context.parent_score.traces) or {}
        for name in scores:
            if name not in trial.scores and name in before:
                trial.traces[name] = before[name]
        said = f"{inherited} failures taken over from the parent, untried" if inherited else None
        return self._score(sum(scores.values()), trial, scores, said)

    def _score(
        self, total: float, trial: _Trial, scores: Mapping[str, float], said: str | None
    ) -> Score:
        cost = len(trial.scores) * (1.0 if self._price is None else self._price)
        return Score(total / len(self.instances), scores, said, trial.traces, cost)

    def _trace(self, name: str, output: object, verdict: Verdict) -> str:
        parts = {"input": str(self.instances[name]), "output": str(output)}
        parts["feedback"] = verdict.feedback or f"score {verdict.score:g} of {self._perfect:g}"
        said = "\n".join(f"{what}: {_cut(text, self._trace_chars)}" for what, text in parts.items())
        return f"[{name}]\n{said}"

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
    """What trying a candidate has shown so far."""

    scores: dict[str, float] = field(default_factory=dict)
    traces: dict[str, str] = field(default_factory=dict)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}... ({len(text) - length} more)"
