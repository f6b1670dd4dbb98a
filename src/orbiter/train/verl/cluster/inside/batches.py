"""Turn a step's rows on verl back into episodes: which are trained, with which weight, and metrics.

verl's estimator gives each session the advantage of its reward over the other sessions of its
prompt, in all rows of the session. Left to do for the same loss as on one machine:

    episodes that failed      taken out of the batch, and counted
    a prompt's only episode   weight 0: verl takes its reward as its advantage
    RLOO                      weight n / (n - 1), for n episodes of the prompt
    loss_aggregation          the weights of `token_weights`, times the trained tokens of the step,
                              since verl then takes the mean over tokens

This file needs neither verl nor Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from orbiter.train.agents.episode import STOPPED
from orbiter.train.verl.algorithms import ALGORITHMS, VeRLAlgorithm
from orbiter.train.verl.config import VeRLConfig

METRIC = "episode/"
"""Prefix of these metrics in verl's log; the process that started the job removes it."""
EVALUATION = "evaluation-{step}.json"
"""File with the metrics of a validation, which verl's own would not count by episodes."""


class EpisodeRow(NamedTuple):
    """One row of verl's batch."""

    key: str
    """`{prompt}_{session}_{index}`."""
    facts: Mapping[str, Any]
    """The facts about the episode that the worker sends; the same in all its rows."""

    @property
    def prompt(self) -> str:
        """The group."""
        return self.key.rsplit("_", 2)[0]

    @property
    def session(self) -> str:
        """The episode."""
        return self.key.rsplit("_", 1)[0]


class Sifted(NamedTuple):
    """The rows of a step, sorted out."""

    kept: list[str]
    """Keys of the rows to train on."""
    dropped: list[str]
    weight: dict[str, float]
    """Weight of each token of a kept row."""
    metrics: dict[str, float]
    failures: list[str]
    episodes: int
    groups: list[dict[str, Any]]
    """The episodes of each prompt, as records for the run's folder."""


def sift(rows: Sequence[EpisodeRow], config: VeRLConfig, *, validates: bool = False) -> Sifted:
    """Sort out a step's rows; a validation counts every episode, without `on_truncation`."""
    if validates:
        rows = [EpisodeRow(row.key, _facts_with_reward(row.facts)) for row in rows]
    # One row of each is enough: the facts are the same in all of them.
    episodes = {row.session: row for row in rows}
    trained = {name: row for name, row in episodes.items() if row.facts["trained"]}
    kept = [row for row in rows if row.session in trained]
    weight = _weights(kept, trained, config)
    of_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in episodes.values():
        of_prompt.setdefault(row.prompt, []).append(row.facts["record"])
    failures = [row.facts["failure"] for row in episodes.values() if row.facts["failure"]]
    return Sifted(
        kept=[row.key for row in kept],
        dropped=[row.key for row in rows if row.session not in trained],
        weight=weight,
        metrics=_metrics([row.facts for row in episodes.values()], trained),
        failures=failures,
        episodes=len(episodes),
        groups=[{"prompt": "", "outputs": outputs} for outputs in of_prompt.values()],
    )


def _facts_with_reward(facts: Mapping[str, Any]) -> dict[str, Any]:
    score = facts["score"]
    return {**facts, "reward": score, "trained": score is not None}


def _weights(
    kept: Sequence[EpisodeRow], trained: Mapping[str, EpisodeRow], config: VeRLConfig
) -> dict[str, float]:
    """Return the weight of the tokens of each row, by key."""
    # Only the trained ones: verl computes its baseline after the others were taken out.
    siblings = Counter(row.prompt for row in trained.values())
    tokens = sum(int(row.facts["tokens"]) for row in trained.values())
    longest = config.max_episode_tokens or config.max_turns * config.max_response_length
    compares = not ALGORITHMS[config.algorithm].value_head

    def weight(row: EpisodeRow) -> float:
        value, n = 1.0, siblings[row.prompt]
        if config.loss_aggregation == "episode":
            # Times the mean over tokens, this is the mean over episodes of their means over tokens.
            value = tokens / (len(trained) * int(row.facts["tokens"]))
        elif config.loss_aggregation == "constant":
            value = tokens / (len(trained) * longest)
        if compares and n == 1:
            return 0.0
        if config.algorithm is VeRLAlgorithm.RLOO:
            # The mean of all n includes the episode itself; this turns the difference into that to
            # the mean of the others.
            value *= n / (n - 1)
        return value

    return {row.key: weight(row) for row in kept}


def _metrics(
    played: Sequence[Mapping[str, Any]], trained: Mapping[str, EpisodeRow]
) -> dict[str, float]:
    """Return the metrics that the local backend reports for a step's episodes."""
    reasons = Counter(each["stop_reason"] for each in played)
    finished = [each for each in played if not each["failure"]]
    metrics = {"failed": 1 - len(finished) / max(1, len(played))}
    metrics |= {
        f"failed/{each['stop_reason']}": float(reasons[each["stop_reason"]])
        for each in played
        if each["failure"]
    }
    for kind in STOPPED:
        if reasons[kind]:
            metrics[f"stopped/{kind}"] = float(reasons[kind])
    if retries := sum(each["retries"] for each in played):
        metrics["retries"] = float(retries)
    if finished:
        metrics["turns"] = fmean(each["turns"] for each in finished)
        metrics["streams"] = fmean(each["streams"] for each in finished)
        metrics["length"] = fmean(each["tokens"] for each in finished)
        metrics["tokens"] = float(sum(each["tokens"] for each in finished))
    rewards = [float(row.facts["reward"]) for row in trained.values()]
    if rewards:
        metrics["reward"], metrics["reward_std"] = fmean(rewards), pstdev(rewards)
        metrics["flat_groups"] = _flat_groups(trained)
    metrics["reward_faults"] = float(sum(each["faults"] for each in played))
    return {METRIC + name: value for name, value in metrics.items()} | _by_name(finished)


def _flat_groups(trained: Mapping[str, EpisodeRow]) -> float:
    """Return the share of the prompts whose episodes all have the same reward."""
    groups: dict[str, set[float]] = {}
    for row in trained.values():
        groups.setdefault(row.prompt, set()).add(float(row.facts["reward"]))
    return fmean(len(rewards) < 2 for rewards in groups.values())


def _by_name(played: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each reward over the episodes that have it."""
    names = dict.fromkeys(name for each in played for name in each["rewards"])
    values = {
        name: [v for each in played if (v := each["rewards"].get(name)) is not None]
        for name in names
    }
    return {f"reward/{name}": math.fsum(v) / len(v) for name, v in values.items() if v}


def rows_of_an_update(rows: int, *, updates: int, workers: int, group_size: int) -> int:
    """Return the rows that each of a step's updates takes, padding included.

    verl counts an update's rows in whole groups, and each of the workers takes the same number.
    """
    # Divisible by both, or verl would refuse the batch or drop rows.
    unit = math.lcm(workers, group_size)
    return unit * max(1, math.ceil(rows / (unit * updates)))
