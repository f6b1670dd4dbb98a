"""A small process of decisions whose policy gradient is known exactly, by listing every episode.

A tool shows one of two secrets, and only its name is paid. The policy may name one unseen, look
first, and look again for a little cost: so it decides when to stop, and one answer cannot solve it.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[str, ...]
Gradient = dict[tuple[State, str], float]
"""Derivative by the logit of each action in each state."""

SECRETS = ("x", "y")
LONGEST = 3


class Step(NamedTuple):
    """A turn: what was seen, what was done, what it gave."""

    state: State
    action: str
    reward: float


Episode = tuple[Step, ...]


def actions(state: State) -> tuple[str, ...]:
    if len(state) == LONGEST:
        return SECRETS
    return ("look", *SECRETS)


class Process:
    """The process under a policy with these logits."""

    def __init__(self, logits: Callable[[State, str], float]) -> None:
        self.logits = logits

    def probability(self, state: State, action: str) -> float:
        weights = {a: math.exp(self.logits(state, a)) for a in actions(state)}
        return weights[action] / math.fsum(weights.values())

    def episodes(self) -> list[tuple[Episode, float]]:
        """Return every episode with its probability."""
        return [
            (episode, p / len(SECRETS))
            for secret in SECRETS
            for episode, p in self._from(("start",), secret)
        ]

    def _from(self, state: State, secret: str) -> Iterator[tuple[Episode, float]]:
        for action in actions(state):
            p = self.probability(state, action)
            if action != "look":
                yield (Step(state, action, float(action == secret)),), p
                continue
            shown = (*state, secret)
            cost = 0.1 if len(state) == 1 else -0.05
            for rest, q in self._from(shown, secret):
                yield (Step(state, action, cost), *rest), p * q

    def score(self, step: Step) -> Gradient:
        """Return the gradient of the log probability of a step's action."""
        return {
            (step.state, a): float(a == step.action) - self.probability(step.state, a)
            for a in actions(step.state)
        }

    def gradient(self, credit: Callable[[Episode], list[float]]) -> Gradient:
        """Return the expectation of the credited scores of an episode."""
        total: Gradient = defaultdict(float)
        for episode, p in self.episodes():
            for step, given in zip(episode, credit(episode), strict=True):
                for key, value in self.score(step).items():
                    total[key] += p * given * value
        return dict(total)

    def expected(self, estimator: Callable[[Groups], Tensor], size: int) -> Gradient:
        """Return the expectation of an estimator's gradient, a mean over the episodes of a group.

        Every possible group is listed, with its probability.
        """
        groups = list(itertools.product(self.episodes(), repeat=size))
        advantage = estimator(Groups.of([[e for e, _ in group] for group in groups])).tolist()
        total: Gradient = defaultdict(float)
        for group, of_group in zip(groups, advantage, strict=True):
            p = math.prod(p for _, p in group)
            for (episode, _), of_episode in zip(group, of_group, strict=True):
                for step, given in zip(episode, of_episode, strict=False):
                    for key, value in self.score(step).items():
                        total[key] += p * given * value / size
        return dict(total)


class Groups(NamedTuple):
    """Groups of episodes as the code takes them."""

    reward: Tensor
    valid: Tensor
    state: Tensor

    @classmethod
    def of(cls, groups: list[list[Episode]]) -> Groups:
        shape = (len(groups), len(groups[0]), LONGEST)
        reward = torch.full(shape, torch.nan, dtype=torch.float64)
        valid, state = torch.zeros(shape, dtype=torch.bool), torch.full(shape, -7)
        numbers: dict[State, int] = {}
        for p, group in enumerate(groups):
            for g, episode in enumerate(group):
                for k, step in enumerate(episode):
                    reward[p, g, k], valid[p, g, k] = step.reward, True
                    state[p, g, k] = numbers.setdefault(step.state, len(numbers))
        return cls(reward, valid, state)


def returns(episode: Episode, gamma: float) -> list[float]:
    """The discounted return from each turn on."""
    return [
        math.fsum(gamma ** (j - k) * episode[j].reward for j in range(k, len(episode)))
        for k in range(len(episode))
    ]


def uneven(state: State, action: str) -> float:
    """Logits that prefer something else in every state."""
    return {"look": -0.4, "x": 0.3, "y": -0.2}[action] * (1 + 0.5 * len(state))
