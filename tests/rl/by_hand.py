"""The formulas once more, in plain floats and loops, straight from the papers.

Rows are ragged lists: a row holds its trained tokens only, so there is no mask to get wrong.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev

Rows = list[list[float]]


def group_advantage(reward: Rows, eps: float = 1e-6) -> Rows:
    """(r - mean) / (std + eps) within each row, sample standard deviation."""
    return [[(r - fmean(row)) / (stdev(row) + eps) for r in row] for row in reward]


def gae(reward: Rows, value: Rows, gamma: float, lam: float) -> Rows:
    """The sum form of the estimator: A_t = sum_l (gamma lam)^l delta_t+l."""
    advantages = []
    for r, v in zip(reward, value, strict=True):
        after = [*v[1:], 0.0]
        delta = [r[t] + gamma * after[t] - v[t] for t in range(len(r))]
        advantages.append(
            [
                math.fsum((gamma * lam) ** (u - t) * delta[u] for u in range(t, len(r)))
                for t in range(len(r))
            ]
        )
    return advantages


def whiten(x: Rows, eps: float = 1e-8) -> Rows:
    """(x - mean) / sqrt(var + eps) over all rows together."""
    every = [number for row in x for number in row]
    scale = math.sqrt(stdev(every) ** 2 + eps)
    return [[(number - fmean(every)) / scale for number in row] for row in x]


def surrogate(
    logprob: Rows, old: Rows, advantage: Rows, low: float, high: float
) -> tuple[Rows, float]:
    """-min(rho A, clip(rho) A) a token, and the share of tokens where the clip was binding."""
    losses, binding = [], 0
    for lp, op, adv in zip(logprob, old, advantage, strict=True):
        row = []
        for one, other, a in zip(lp, op, adv, strict=True):
            rho = math.exp(one - other)
            clipped = min(max(rho, 1 - low), 1 + high)
            row.append(-min(rho * a, clipped * a))
            binding += clipped * a < rho * a
        losses.append(row)
    return losses, binding / sum(map(len, losses))


def surrogate_gradient(logprob: Rows, old: Rows, advantage: Rows, low: float, high: float) -> Rows:
    """The derivative of each token's loss: -rho A, or 0 where the clip holds it."""
    gradient = []
    for lp, op, adv in zip(logprob, old, advantage, strict=True):
        row = []
        for one, other, a in zip(lp, op, adv, strict=True):
            rho = math.exp(one - other)
            held = (a > 0 and rho > 1 + high) or (a < 0 and rho < 1 - low)
            row.append(0.0 if held else -rho * a)
        gradient.append(row)
    return gradient


def value_loss(value: Rows, old: Rows, return_: Rows, clip: float) -> Rows:
    """max((V - R)^2, (V_clip - R)^2) / 2 a token."""
    losses = []
    for v_row, o_row, r_row in zip(value, old, return_, strict=True):
        row = []
        for v, o, r in zip(v_row, o_row, r_row, strict=True):
            moved = min(max(v, o - clip), o + clip)
            row.append(max((v - r) ** 2, (moved - r) ** 2) / 2)
        losses.append(row)
    return losses


def aggregate(per_token: Rows, aggregation: str, max_length: int) -> float:
    """One number from one loss a token."""
    every = [number for row in per_token for number in row]
    if aggregation == "token":
        return math.fsum(every) / len(every)
    if aggregation == "sequence":
        return fmean(fmean(row) for row in per_token)
    return math.fsum(every) / (len(per_token) * max_length)


def kl(logprob: float, ref: float, kind: str) -> float:
    """The three estimators, one token at a time."""
    d = ref - logprob
    return {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - 1 - d}[kind]


def entropy(logits: list[float]) -> float:
    """-sum p log p."""
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)


def returns(reward: list[float], gamma: float) -> list[float]:
    """sum_j gamma^(j - k) r_j from each k on."""
    return [
        math.fsum(gamma ** (j - k) * reward[j] for j in range(k, len(reward)))
        for k in range(len(reward))
    ]


def turn_advantage(rows: Rows, by_turn: bool, divide: bool, eps: float = 1e-6) -> Rows:
    """(n - 1) / n (G - mean of the others' G) within one group of episodes, over std if asked."""
    every = [g for row in rows for g in row]
    n = sum(1 for row in rows if row)
    if n < 2 or min(every) == max(every):
        return [[0.0] * len(row) for row in rows]
    spread = stdev(every) + eps if divide else 1.0
    advantages = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        pooled = fmean([g for other in others for g in other]) if row else 0.0
        there = [[other[k] for other in others if len(other) > k] for k in range(len(row))]
        baseline = [fmean(t) if by_turn and t else pooled for t in there]
        advantages.append([(n - 1) / n * (g - b) / spread for g, b in zip(row, baseline)])  # noqa: B905
    return advantages


def state_advantage(rows: Rows, states: list[list[int]], divide: bool, eps: float = 1e-6) -> Rows:
    """(G - mean) / (std + eps) over the turns of the group in the same state."""
    held: dict[int, list[float]] = {}
    for row, state_row in zip(rows, states, strict=True):
        for g, state in zip(row, state_row, strict=True):
            held.setdefault(state, []).append(g)

    def one(g: float, state: int) -> float:
        same = held[state]
        if min(same) == max(same):
            return 0.0
        return (g - fmean(same)) / (stdev(same) + eps if divide else 1.0)

    return [
        [one(g, state) for g, state in zip(row, state_row, strict=True)]
        for row, state_row in zip(rows, states, strict=True)
    ]
