"""Population-based training: settings evolve while the models that use them keep learning.

Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846: all members train for a while; then those
at the bottom copy the weights of one at the top (exploit) and its settings, perturbed (explore).
Here every stretch of training is one evaluation, so that the journal, budgets, timeouts and
resuming are those of `EvolutionPipeline`. The trainer comes from the user's factory.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from typing_extensions import override

from orbiter.train.callback import call
from orbiter.train.contained import inside
from orbiter.train.disk import disk_errors
from orbiter.train.errors import ConfigError, TrainingError, boundary
from orbiter.train.evolution.strategies.space import (
    Choice,
    Int,
    Settings,
    Space,
    check_settings,
    check_space,
    draw,
)
from orbiter.train.evolution.strategy import EvolutionStrategy, Score


class TrainerFactory(Protocol):
    """Trains one member for one stretch."""

    def __call__(
        self, settings: Settings, start: Path | None, folder: Path, /
    ) -> float | Score | Awaitable[float | Score]:
        """Continue training from the checkpoint `start` (None: from scratch) with these settings.

        Leave a checkpoint in `folder`, and return the score of the trained model.
        """


@dataclass(frozen=True, slots=True)
class Trainee:
    """A member for one stretch of training: its settings, and the checkpoint it starts from."""

    settings: Settings
    seat: int
    stretch: int = 0
    """Stretches of training before this one."""
    start: str | None = None
    """Name of the checkpoint's folder; None in the first stretch."""

    @property
    def folder(self) -> str:
        """Name of its checkpoint folder: the same for the same training, in every process."""
        content = repr((sorted(self.settings.items()), self.start)).encode()
        digest = hashlib.blake2b(content, digest_size=4).hexdigest()
        return f"stretch-{self.stretch}-seat-{self.seat}-{digest}"


class PopulationTraining(EvolutionStrategy[Trainee]):
    """Evolves the settings of running trainings.

    Example::

        async def train_on(settings, start, folder):
            trainer = make_trainer(**settings, model=start or "tiny")
            metrics = await trainer.train(tasks)
            await trainer.save(folder)
            return metrics.reward

        space = {"learning_rate": Float(1e-5, 1e-2, log=True)}
        strategy = PopulationTraining(train_on, space, "checkpoints")
        config = EvolutionConfig(epochs=5, population_size=8)
        result = await EvolutionPipeline(config, strategy).run(strategy.members(8))
    """

    renews: ClassVar[bool] = True

    def __init__(
        self,
        trainer_factory: TrainerFactory,
        space: Space,
        folder: str | PathLike[str],
        *,
        truncation: float = 0.25,
        resample: float = 0.25,
    ) -> None:
        """Set up a training; `population_size` is its number of members, `epochs` of stretches.

        Args:
            trainer_factory: trains a member for one stretch, and leaves a checkpoint.
            space: the settings that evolve.
            folder: where the checkpoints are kept.
            truncation: the share at the bottom that copies an equal share at the top.
            resample: how often a copied setting is drawn at random instead of perturbed.

        Raises:
            ConfigError: the space is empty, or a share is out of range.
        """
        check_space(space)
        if not (0 < truncation <= 0.5 and 0 <= resample <= 1):
            raise ConfigError(
                f"truncation must lie in (0, 0.5] and resample in [0, 1], got {truncation!r} and "
                f"{resample!r}"
            )
        self.space, self.folder = dict(space), Path(folder)
        self._factory: Callable[..., float | Score | Awaitable[float | Score]] = trainer_factory
        self._truncation, self._resample = truncation, resample
        self._standing: list[Trainee] = []
        self._placed = 0
        self._plan: dict[str, _Seat] = {}

    def members(self, count: int, *, seed: int = 0) -> list[Trainee]:
        """Return members with settings from anywhere in the space, to start from."""
        random_ = random.Random(seed)
        settings = [
            {name: draw(knob, random_) for name, knob in self.space.items()} for _ in range(count)
        ]
        return [Trainee(each, seat) for seat, each in enumerate(settings)]

    @override
    async def evaluate(self, candidate: Trainee) -> float | Score:
        check_settings(self.space, candidate.settings)
        named = candidate.start
        start = None if named is None else inside(self.folder, named, "the journal")
        own = self.folder / candidate.folder
        with disk_errors(own):
            own.mkdir(parents=True, exist_ok=True)
        with boundary("trainer_factory"):
            score: float | Score = await call(self._factory, dict(candidate.settings), start, own)
        # A member without a checkpoint would silently begin anew in its next stretch.
        if not any(own.iterdir()):
            raise TrainingError(
                f"trainer_factory left no checkpoint in {own}: nothing to continue from"
            )
        return score

    @override
    async def select(self, population: Sequence[Trainee], scores: Sequence[float]) -> list[Trainee]:
        """Keep all members of the last stretch, best first; `choose_parent` replaces the worst."""
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        # A failed member has no weights to continue from; its slot goes to another one.
        alive = [i for i in order if scores[i] > float("-inf")]
        self._standing, self._placed = [population[i] for i in alive], 0
        return self._standing

    @override
    def choose_parent(self, population: Sequence[Trainee], scores: Sequence[Score]) -> int | None:
        """Return the next slot's parent: its member, or one of the top if it is at the bottom.

        A member without a checkpoint is never copied.
        """
        seat, alive = self._placed, self._standing
        self._placed += 1
        if not alive:
            return None
        # Truncation selection (Jaderberg et al. 2017): the worst copy the best.
        cut = max(1, round(self._truncation * len(alive)))
        stays = seat < len(alive) - cut or len(alive) == 1
        donors = [member for member in alive[:cut] if self._has_checkpoint(member)]
        copies = bool(donors) and not stays
        chosen = self.context.rng.choice(donors) if copies else alive[min(seat, len(alive) - 1)]
        self._plan[self.context.child] = _Seat(seat, copies)
        return next((i for i, member in enumerate(population) if member is chosen), None)

    @override
    async def mutate(self, candidate: Trainee) -> Trainee:
        """Continue with the same settings, or with perturbed ones in a copied slot."""
        plan = self._plan.get(self.context.child)
        if plan is None:  # before the first stretch: there is no checkpoint yet
            return replace(candidate, settings=self._explored(candidate.settings))
        settings = self._explored(candidate.settings) if plan.copies else candidate.settings
        return Trainee(settings, plan.number, candidate.stretch + 1, candidate.folder)

    def _explored(self, settings: Settings) -> Settings:
        random_ = self.context.rng
        explored: Settings = {}
        for name, knob in self.space.items():
            if isinstance(knob, Choice) or random_.random() < self._resample:
                again = random_.random() < self._resample or not isinstance(knob, Choice)
                explored[name] = draw(knob, random_) if again else settings[name]
                continue
            value = settings[name]
            # Jaderberg et al. 2017: a copied number is multiplied by 0.8 or 1.2.
            moved = value * random_.choice(PERTURBED)
            clipped = min(knob.high, max(knob.low, moved))
            explored[name] = round(clipped) if isinstance(knob, Int) else clipped
        return explored

    def _has_checkpoint(self, member: Trainee) -> bool:
        folder = self.folder / member.folder
        return folder.is_dir() and any(folder.iterdir())


class _Seat(NamedTuple):
    number: int
    copies: bool
    """It takes another member's weights, and its settings, perturbed."""


PERTURBED = (0.8, 1.2)
"""Factors by which a copied number is perturbed."""
