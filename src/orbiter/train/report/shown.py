"""Choose which groups of samples a page shows, and shorten their texts.

Reading the file is in `samples.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SHOWN = 300
"""Maximum number of groups on a page."""
PROMPT_CHARS, OUTPUT_CHARS = 2_000, 1_200
"""Characters of a text that a page shows; the rest stays in the run's folder."""
TURN_CHARS, TURNS, EPISODES = 500, 24, 8
"""Characters of a message in a turn, turns of an episode, and episodes of a group, that a page
shows."""
OUTPUTS = 32
"""Maximum number of outputs per group: those with the highest and with the lowest rewards."""
SHARES = {"first": 0.08, "last": 0.12, "best": 0.12, "worst": 0.12, "changed": 0.2, "even": 1.0}
"""Largest share of the shown groups that each criterion may take."""
GOLDEN = 0.6180339887498949
"""Golden ratio conjugate: its multiples modulo 1 cover the unit interval evenly at any count."""

Group = dict[str, Any]
"""A group of samples as the page receives it: step, prompt, outputs."""


class Fact(NamedTuple):
    """Summary kept in memory for every group of a run."""

    start: int
    """Byte offset of its line."""
    step: int
    prompt: int
    """Equal for groups of the same prompt."""
    reward: float | None
    """Mean over the outputs that have a reward."""
    rewards: tuple[float, ...]
    parts: Mapping[str, float]
    """Mean of each reward component."""


def by_turns(facts: Sequence[Fact]) -> Iterator[tuple[int, str]]:
    """Yield the index of each group worth showing with the reason, alternating between reasons.

    The reasons: first, last, best, worst, prompts whose reward changed most, and an even sample
    that finally includes all. A caller that stops early has some of every kind.
    """
    known = [group for group, fact in enumerate(facts) if fact.reward is not None]
    worst = sorted(known, key=lambda group: (facts[group].reward, -group))
    choices = {
        "first": range(len(facts)),
        "last": range(len(facts) - 1, -1, -1),
        "best": worst[::-1],
        "worst": worst,
        "changed": _changed(facts, known),
        "even": [*_evenly(len(facts)), *range(len(facts))],
    }
    size = min(SHOWN, len(facts))
    cut_short = [
        [
            (group, why)
            for group in places[: max(1, int(SHARES[why] * size)) if SHARES[why] < 1 else None]
        ]
        for why, places in choices.items()
    ]
    for turn in itertools.zip_longest(*cut_short):
        yield from (choice for choice in turn if choice is not None)


def _changed(facts: Sequence[Fact], known: Sequence[int]) -> list[int]:
    """Return the first and last group of every repeated prompt, the largest change first."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index in known:
        first.setdefault(facts[index].prompt, index)
        last[facts[index].prompt] = index
    pairs = [(first[prompt], last[prompt]) for prompt in first if first[prompt] != last[prompt]]
    changes = {
        pair: abs((facts[pair[1]].reward or 0) - (facts[pair[0]].reward or 0)) for pair in pairs
    }
    return [index for pair in sorted(pairs, key=lambda pair: -changes[pair]) for index in pair]


def _evenly(count: int) -> Iterator[int]:
    return (int(count * (turn * GOLDEN % 1)) for turn in range(min(count, 2 * SHOWN)))


def outputs_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record's outputs in one form; a single sample becomes a group of one."""
    outputs = record.get("outputs")
    if outputs is None:
        outputs = [{**record, "text": record.get("completion", "")}]
    return [
        {
            "text": str(output.get("text", "")),
            "reward": output.get("reward"),
            "rewards": output.get("rewards") or {},
            **{k: output[k] for k in _FURTHER if output.get(k) is not None},
            **({"cut_off": True} if output.get("cut_off") else {}),
        }
        for output in outputs
    ]


_FURTHER = ("advantage", "tokens", "stop_reason", "error", "turns", "name")
"""Entries of an output that not all have; the last ones are those of an agent's episode."""


def group_for_page(record: Mapping[str, Any]) -> Group:
    """Return a group for the page, with long texts cut and only the extreme outputs if many."""
    outputs = outputs_of(record)
    group: Group = {
        "step": record["step"],
        "prompt": cut(str(record.get("prompt", "")), PROMPT_CHARS),
    }
    if record.get("task"):
        group["task"] = cut(str(record["task"]), 200)
    if record.get("messages"):
        group["messages"] = [_turn(message) for message in record["messages"]]
    most = EPISODES if any("turns" in output for output in outputs) else OUTPUTS
    if len(outputs) > most:
        group["left_out"] = len(outputs) - most
        # The best and the worst show most of what can be learned.
        ranked = sorted(outputs, key=lambda output: -(output["reward"] or 0))
        outputs = ranked[: most // 2] + ranked[-most // 2 :]
    return group | {"outputs": [_output(output) for output in outputs]}


def _output(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return an output with its texts cut, and of an episode the first and the last turns."""
    kept = dict(output) | {"text": cut(output["text"], OUTPUT_CHARS)}
    if "error" in output:
        kept["error"] = cut(str(output["error"]), OUTPUT_CHARS)
    if "turns" in output:
        turns = [_episode_turn(number, turn) for number, turn in enumerate(output["turns"], 1)]
        kept["turns_in_all"] = len(turns)
        kept["turns"] = turns
        if len(turns) > TURNS:
            kept["turns"] = turns[: TURNS // 2] + turns[-TURNS // 2 :]
    return kept


def _episode_turn(number: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn of an episode: what was new in its prompt, the answer, and its worth."""
    return {
        "number": number,
        "asked": [_turn(message, TURN_CHARS) for message in turn.get("asked") or ()],
        "answer": _turn(turn.get("answer") or {}, TURN_CHARS),
        **{k: turn[k] for k in ("tokens", "reward", "advantage") if turn.get(k) is not None},
        **({"cut_off": True} if turn.get("finish_reason") == "length" else {}),
    }


def _turn(message: Mapping[str, Any], chars: int = PROMPT_CHARS) -> dict[str, Any]:
    """Return one chat message for the page: role, text, and the tools called."""
    content = message.get("content")
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    text = content if isinstance(content, str) else "" if content is None else str(content)
    turn: dict[str, Any] = {"role": str(message.get("role", "")), "text": cut(text, chars)}
    if calls:
        turn["calls"] = [
            {
                "name": str(call.get("name", "")),
                "arguments": cut(str(call.get("arguments")), min(chars, OUTPUT_CHARS)),
            }
            for call in calls
        ]
    return turn


def cut(text: str, limit: int) -> str:
    """Return the text, without its middle if it is too long for a page."""
    if len(text) <= limit:
        return text
    half = limit // 2
    gap = f"\n[… {len(text) - 2 * half} characters more are in the run's folder …]\n"
    return text[:half] + gap + text[-half:]
