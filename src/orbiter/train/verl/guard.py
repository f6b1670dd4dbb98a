"""Warnings about a collapsing policy: no tool calls, one action only, no difference in reward.

The means of a run's latest steps are compared with those of its first ones. A warning is logged
when its condition becomes true, and again if it returns later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from statistics import fmean

from orbiter.train.agents.episode import Episode
from orbiter.train.chat.tool_calls import OPENING, name_of
from orbiter.train.engine.session import Position

log = logging.getLogger(__name__)

WINDOW = 5
"""Steps over which the first and the latest values are averaged."""
WATCHED = ("reward", "flat_groups", "tool_calls", "bad_calls", "turns", "length")


def watch(position: Position, row: Mapping[str, float]) -> None:
    """Record a step's metrics, and log the warnings whose condition became true."""
    for name in WATCHED:
        if name in row:
            values = position.watched.setdefault(name, [])
            values.append(row[name])
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
    full = {name: values for name, values in watched.items() if len(values) >= 2 * WINDOW}
    first = {name: fmean(values[:WINDOW]) for name, values in full.items()}
    last = {name: fmean(values[-WINDOW:]) for name, values in full.items()}
    reward = (
        f"reward {last['reward']:.3g}, at first {first['reward']:.3g}" if "reward" in last else ""
    )

    def became(name: str) -> str:
        return f"{last[name]:.3g}, at first {first[name]:.3g}; {reward}"

    holding: dict[str, str] = {}
    if "tool_calls" in last and last["tool_calls"] < first["tool_calls"] / 4 > 0.05:
        holding["lost_tool_use"] = (
            f"the policy hardly calls tools any more (an episode: {became('tool_calls')}). Make "
            "sure that the reward cannot be had without them; a KL penalty (kl_coef) or a lower "
            "learning_rate keeps the policy closer to its start"
        )
    if "bad_calls" in last and last["bad_calls"] > max(0.5, 2 * first["bad_calls"]):
        holding["invalid_calls"] = (
            f"the policy repeats calls, or makes calls that no tool understands (an episode: "
            f"{became('bad_calls')}). Penalise them with a step reward, or lower max_turns"
        )
    if "turns" in last and first["turns"] >= 1.5 and last["turns"] < 1.05:
        holding["ends_at_once"] = (
            f"one action ends almost every episode (turns: {became('turns')}). A KL penalty "
            "(kl_coef), clip_range_high, or an entropy bonus (ent_coef) counters that"
        )
    if "length" in last and last["length"] < first["length"] / 4:
        holding["collapsing_length"] = (
            f"episodes have become very short (sampled tokens: {became('length')})"
        )
    if "length" in last and last["length"] > 4 * first["length"]:
        holding["growing_length"] = (
            f"episodes have become very long (sampled tokens: {became('length')}). Lower "
            "max_response_length or max_episode_tokens, and penalise truncation (on_truncation)"
        )
    if "flat_groups" in last and last["flat_groups"] > 0.9 > first["flat_groups"]:
        holding["flat_groups"] = (
            f"in almost every group all episodes got the same reward ({reward}), so there is "
            "little to learn from. Use harder or easier tasks, a reward that distinguishes "
            "episodes, "
            "a larger group_size, or max_extra_groups"
        )
    return holding


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
        bad += not calls and OPENING in str(turn.reply.get("content") or "")
        for call in calls:
            name, arguments = name_of(call), _arguments(call)
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
