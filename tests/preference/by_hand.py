"""The losses once more, in plain floats, straight from the papers; one pair or answer at a time."""

from __future__ import annotations

import math


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


Two = tuple[float, float]
"""Of the better and the worse answer; log probabilities are summed over tokens."""


def dpo(pi: Two, ref: Two, beta: float, eps: float) -> float:
    h = beta * ((pi[0] - pi[1]) - (ref[0] - ref[1]))
    return -(1 - eps) * log_sigmoid(h) - eps * log_sigmoid(-h)


def ipo(pi: Two, ref: Two, tokens: tuple[int, int], tau: float) -> float:
    better, worse = ((pi[i] - ref[i]) / tokens[i] for i in (0, 1))
    return (better - worse - 0.5 / tau) ** 2


def kto(ratio: float, good: bool, z: float, beta: float, weight: float) -> float:
    gain = beta * (ratio - max(0.0, z))
    return weight * (1 - sigmoid(gain if good else -gain))


def orpo(pi: Two, tokens: tuple[int, int], weight: float) -> float:
    p = [math.exp(pi[i] / tokens[i]) for i in (0, 1)]
    odds = [each / (1 - each) for each in p]
    return -math.log(p[0]) - weight * log_sigmoid(math.log(odds[0] / odds[1]))


def simpo(pi: Two, tokens: tuple[int, int], beta: float, gamma: float) -> float:
    return -log_sigmoid(beta * pi[0] / tokens[0] - beta * pi[1] / tokens[1] - gamma)
