"""Warnings about a policy that collapses or games its reward, from what a step measures anyway.

Collapse: no tool calls, one action only, equal rewards. Gaming: the reward pays for length
or markup, one reward rises while another is lost, a judge's verdicts follow the order shown. These
are signs, not proof; the alarm of `gold.py` compares with a reward that is trusted more.

The means of a run's latest steps are compared with those of its first ones. A warning is logged
when its condition becomes true, and again if it returns later.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from orbiter.train.agents.episode import Episode
from orbiter.train.chat.tool_calls import OPENING, name_of
from orbiter.train.engine.session import Position
from orbiter.train.verl.judged import correlation_within

log = logging.getLogger(__name__)

LENGTH_EFFECT, MARKUP, MARKUP_EFFECT = "length_effect", "markup", "markup_effect"
PAYS = 0.7
"""Correlation within groups from which something is said to be paid for."""
WINDOW = 5
"""Steps over which the first and the latest values are averaged."""
WATCHED = ("reward", "flat_groups", "tool_calls", "bad_calls", "turns", "length")
WATCHED_KINDS = ("reward/", "order_effect/", LENGTH_EFFECT, MARKUP, MARKUP_EFFECT)
"""Beginnings of further names."""


def watch(position: Position, row: Mapping[str, float], weights: Mapping[str, float]) -> None:
    """Record a step's metrics, and log the warnings whose condition became true.

    Args:
        position: Keeps the values.
        row: The metrics of the step, with `signs`.
        weights: The weight of each reward by name.
    """
    # A reward of negative weight is watched by what it adds to the total.
    signed = {
        name: value * weights.get(name.removeprefix("reward/"), 1.0)
        for name, value in row.items()
        if name in WATCHED or name.startswith(WATCHED_KINDS)
    }
    for name, value in signed.items():
        # Kept in the position, so that a resumed run compares with the same first steps.
        values = position.watched.setdefault(name, [])
        values.append(value)
        # Keeps the first WINDOW values and the latest ones; the slice between them is removed.
        del values[WINDOW:-WINDOW]
    holding = warnings(position.watched)
    for name, message in holding.items():
        if name not in position.warned:
            log.warning("%s: %s", name, message)
    position.warned = list(holding)


def warnings(watched: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return the current warnings by name.

    Args:
        watched: The first and the latest values of each metric, `WINDOW` of each at most.
    """
    # Only once the first and the latest steps do not overlap.
    full = {name: values for name, values in watched.items() if len(values) >= 2 * WINDOW}
    first = {name: fmean(values[:WINDOW]) for name, values in full.items()}
    last = {name: fmean(values[-WINDOW:]) for name, values in full.items()}
    reward = (
        f"reward {last['reward']:.3g}, at first {first['reward']:.3g}" if "reward" in last else ""
    )

    def became(name: str) -> str:
        return f"{last[name]:.3g}, at first {first[name]:.3g}; {reward}"

    holding: dict[str, str] = {}
    # A policy that hardly called tools at the start cannot lose the habit.
    if "tool_calls" in last and last["tool_calls"] < first["tool_calls"] / 4 > 0.05:
        holding["lost_tool_use"] = (
            f"the policy hardly calls tools any more (an episode: {became('tool_calls')}). Make "
            "sure that the agent earns no reward without them; a KL penalty (kl_coef) or a lower "
            "learning_rate keeps the policy closer to its start"
        )
    if "bad_calls" in last and last["bad_calls"] > max(0.5, 2 * first["bad_calls"]):
        holding["invalid_calls"] = (
            f"the policy repeats calls, or makes calls that no tool understands (an episode: "
            f"{became('bad_calls')}). Penalise them with a step reward, or lower max_turns"
        )
    # Also from few further turns: a policy that rarely calls a tool can lose it within three steps.
    if "turns" in last and _ends_at_once(first["turns"], last["turns"]):
        holding["ends_at_once"] = (
            f"one action ends almost every episode (turns: {became('turns')}). Lower learning_rate "
            "first; a KL penalty (kl_coef) or an entropy bonus (ent_coef) counters that too"
        )
    if "length" in last and last["length"] < first["length"] / 4:
        holding["collapsing_length"] = (
            f"outputs have become very short (sampled tokens: {became('length')})"
        )
    if "length" in last and last["length"] > 4 * first["length"]:
        holding["growing_length"] = (
            f"outputs have become very long (sampled tokens: {became('length')}). Lower "
            "max_response_length or max_episode_tokens, and penalise truncation (on_truncation)"
        )
    # A task set that was flat from the start is another problem, with its own message.
    if "flat_groups" in last and last["flat_groups"] > 0.9 > first["flat_groups"]:
        holding["flat_groups"] = (
            f"in almost every group all samples got the same reward ({reward}), so there is "
            "little to learn from. Use harder or easier tasks, a reward that distinguishes "
            "samples, "
            "a larger group_size, or max_extra_groups"
        )
    return holding | _gaming(full, first, last)


def _gaming(
    values: Mapping[str, Sequence[float]], first: Mapping[str, float], last: Mapping[str, float]
) -> dict[str, str]:
    """Return the warnings that the reward may be paid for something else than the task."""
    holding: dict[str, str] = {}
    if (
        "length" in last
        and last.get(LENGTH_EFFECT, 0) > PAYS
        and last["length"] > 1.5 * first["length"]
    ):
        # Both are needed: a correlation alone holds for many honest tasks, whose longer answers are
        # better.
        holding["length_pays"] = (
            f"longer outputs get more reward (correlation within groups: {last[LENGTH_EFFECT]:.2f})"
            f", and outputs have grown from {first['length']:.3g} to {last['length']:.3g} tokens. "
            "Make sure that this is what you want to pay for, or penalise length"
        )
    drift = last.get(MARKUP, 0) - first.get(MARKUP, 0)
    if drift > 0.1 and last.get(MARKUP_EFFECT, 0) > PAYS:
        holding["format_pays"] = (
            f"outputs with more markup get more reward (correlation within groups: "
            f"{last[MARKUP_EFFECT]:.2f}), and the share of characters that are neither letters, "
            f"digits nor spaces has grown from {first[MARKUP]:.0%} to {last[MARKUP]:.0%}. Make "
            "sure that the reward pays for the content"
        )
    rewards = [name for name in last if name.startswith("reward/")]
    lost = [n for n in rewards if first[n] > 0 and last[n] < first[n] / 2 and _moved(values[n])]
    won = [n for n in rewards if last[n] > first[n] and _moved(values[n])]
    for name in lost:
        for other in won:
            # Paid for: the total has risen although one part of it fell.
            if last[other] - first[other] > first[name] - last[name]:
                holding[f"lost_{name}"] = (
                    f"{other.removeprefix('reward/')!r} has grown from {first[other]:.3g} to "
                    f"{last[other]:.3g} of the total, at the cost of "
                    f"{name.removeprefix('reward/')!r}: {first[name]:.3g}, now {last[name]:.3g}. "
                    "Change their weights, or multiply the two in one reward"
                )
    for name in (name for name in last if name.startswith("order_effect/")):
        effect = fmean(values[name])
        # Four standard errors, and at least 0.3, so that chance over many steps raises no alarm.
        if abs(effect) > max(0.3, 4 * stdev(values[name]) / math.sqrt(len(values[name]))):
            holding[name] = (
                f"the scores of judge {name.removeprefix('order_effect/')!r} follow the order in "
                f"which it sees the samples (correlation with the place: {effect:.2f}), so they "
                "are noise to that extent; use more votes, or another model"
            )
    return holding


def _ends_at_once(first: float, last: float) -> bool:
    """Return whether further turns have all but vanished: means of an episode's turns are given."""
    return first >= 1.05 and last - 1 < min(0.05, (first - 1) / 10)


def _moved(values: Sequence[float]) -> bool:
    """Return whether the first and the latest values differ by more than their scatter explains."""
    # stdev, not pstdev: with five values the difference matters.
    early, late = values[:WINDOW], values[-WINDOW:]
    scatter = math.sqrt((stdev(early) ** 2 + stdev(late) ** 2) / WINDOW)
    return abs(fmean(late) - fmean(early)) > 4 * scatter


def signs(
    outputs: Sequence[str],
    lengths: Sequence[int],
    totals: Sequence[float | None],
    group_size: int,
) -> dict[str, float]:
    """Return what shows whether length or markup is paid for, to be watched beside the metrics.

    Args:
        outputs: The outputs of a step, group after group.
        lengths: Their tokens.
        totals: Their rewards; None for a skipped one.
        group_size: Outputs of a group.
    """
    share = [sum(not (c.isalnum() or c.isspace()) for c in o) / max(1, len(o)) for o in outputs]
    kept = [i for i, total in enumerate(totals) if total is not None]
    # Skipped samples have no reward to correlate with.
    measured = {MARKUP: fmean(share[i] for i in kept)} if kept else {}
    for name, values in ((LENGTH_EFFECT, lengths), (MARKUP_EFFECT, share)):
        effect = correlation_within(
            [(i // group_size, float(values[i]), totals[i] or 0.0) for i in kept]
        )
        if effect is not None:
            measured[name] = effect
    return measured


def call_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return the tool calls of an episode on average, and those that are repeated or invalid."""
    return {
        "tool_calls": fmean(
            sum(len(turn.reply.get("tool_calls") or ()) for turn in episode.turns)
            for episode in episodes
        ),
        "bad_calls": fmean(_bad_calls(episode) for episode in episodes),
    }


def _bad_calls(episode: Episode) -> int:
    """Count calls of tools that are not offered, calls without JSON arguments, and repeated calls.

    A reply that contains the mark of a call but cannot be parsed as one counts as a call.
    """
    bad, made = 0, set[tuple[str, str]]()
    for turn in episode.turns:
        calls = turn.reply.get("tool_calls") or ()
        offered = {name_of(tool) for tool in turn.tools or ()}
        # The template's mark without a parsed call means that the model tried to call and failed.
        bad += not calls and OPENING in str(turn.reply.get("content") or "")
        for call in calls:
            name, arguments = name_of(call), _arguments(call)
            # A repeated call with equal arguments is a loop in most environments.
            again = (name, arguments or "") in made
            bad += name not in offered or arguments is None or again
            made.add((name, arguments or ""))
    return bad


def _arguments(call: Mapping[str, object]) -> str | None:
    """Return a call's arguments in one spelling; None if they are not a JSON object."""
    function = call.get("function")
    if not isinstance(function, Mapping):  # a custom tool takes any text
        return json.dumps(call, sort_keys=True, default=str)
    try:
        arguments = json.loads(str(function.get("arguments") or "{}"))
    except ValueError:
        return None
    return json.dumps(arguments, sort_keys=True) if isinstance(arguments, dict) else None
