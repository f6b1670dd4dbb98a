"""Decides which text of a row is compared with the texts of other rows.

Rows of agents share most of their text: one system prompt, one set of worked examples, and in each
step the whole history of the episode so far. Two rows are similar only if what they *add* to that
is similar. A unit is kept or dropped as a whole:

- `"episode"` (the default): all rows of an episode. Its text is what its steps add, in order. A row
  without an `episode_id` is an episode of one step.
- `"step"`: one row. Its text is what this step adds to the earlier steps of its episode.
- `"text"`: one row. Its text is the whole state and action.

What a row adds is its state without the messages that an earlier step of its episode already had,
without the instructions, and with its action. The instructions are the system messages, and the
opening turns that another unit begins with as well. Units with different instructions are never
similar. Instructions that reach `SAME_INSTRUCTIONS` with each other count as the same; the words in
which they differ (a date, a name) are part of the compared text. Instructions of at most
`SHORT_INSTRUCTIONS` words are compared as a whole, since they cannot outweigh the rest.

A row that shares nothing is compared by its state and action, word for word.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast

from orbiter.train.chat.message import text_of
from orbiter.train.chat.tool_calls import write_call
from orbiter.train.errors import ConfigError, did_you_mean
from orbiter.train.synthesis.records import Row, action_of, state_of, value_of
from orbiter.train.synthesis.similarity import Measure, ties
from orbiter.train.trajectory import TrajectoryItem

Unit: TypeAlias = Literal["episode", "step", "text"]
"""The rows that are compared, and kept or dropped, as a whole."""
UNITS: tuple[Unit, ...] = ("episode", "step", "text")

SAME_INSTRUCTIONS = 0.7
"""Jaccard similarity from which two system prompts count as one prompt with small changes."""
SHORT_INSTRUCTIONS = 12
"""Words up to which instructions are compared together with the rest of the row."""


class StateMessage(NamedTuple):
    """One message of a state."""

    role: str
    text: str


class RowText(NamedTuple):
    """The text that one row adds."""

    row: int
    state: str
    action: str


class Units(NamedTuple):
    """Units in the order of their first rows, one list per property."""

    members: Sequence[Sequence[int]]
    """The rows of each unit, first step first."""
    texts: list[str]
    """The text that its steps add to state and action."""
    states: list[str]
    """The text that its steps add to the states alone."""
    openings: list[str]
    """The text that its first step adds to the state: the task of an episode."""
    contexts: list[int]
    """Number of its instructions; only units of the same number are compared."""


def units_of(rows: Sequence[Row], unit: Unit, *, reference: int = 0) -> Units:
    """Return the units of `rows`.

    The first `reference` rows are a reference set; they form no episode with the others.
    """
    states = [row.state if isinstance(row, TrajectoryItem) else state_of(row) for row in rows]
    actions = [row.action if isinstance(row, TrajectoryItem) else action_of(row) for row in rows]
    # Rows that share nothing need none of what follows: no turns, no episodes.
    special = set() if unit == "text" else {n for n, row in enumerate(rows) if _may_share(row)}
    if not special:  # a fast path for most data sets of single turns
        texts = [f"{state}\n{action}" for state, action in zip(states, actions, strict=True)]
        return Units(list(zip(range(len(rows)))), texts, states, states, [0] * len(rows))
    whole = list(map(RowText, range(len(rows)), states, actions))
    turns = {index: _turns(rows[index], states[index]) for index in special}
    episodes = _episodes(rows, special, reference)
    leads = _shared_leads(turns, episodes)
    units = [Compared([part]) for part in whole if part.row not in special]
    for episode in episodes:
        first = _instructions(turns[episode[0]], leads)
        parts = list(_added(episode, turns, whole, first))
        instructions = "\n".join(turn.text for turn in first)
        grouped = [[part] for part in parts] if unit == "step" else [parts]
        units += [Compared(group, instructions) for group in grouped]
    # By first rows, because the caller decides in the order of the data.
    units.sort(key=lambda each: min(part.row for part in each.parts))
    _number_contexts(units)
    return Units(
        [[part.row for part in each.parts] for each in units],
        [each.joined(f"{part.state}\n{part.action}" for part in each.parts) for each in units],
        [each.joined(part.state for part in each.parts) for each in units],
        [each.joined([each.parts[0].state]) for each in units],
        [each.context for each in units],
    )


def text_alone(row: Row) -> tuple[str, str]:
    """Return the long instructions of a row, or "", and its text without them.

    For rows that arrive one at a time, so that the text they share with later rows is unknown.
    """
    units = units_of([row], "step")
    # Context 0 means that there are no long instructions.
    if not units.contexts[0]:
        return "", units.texts[0]
    turns = _turns(row, state_of(row))
    return "\n".join(turn.text for turn in turns if turn.role in _SYSTEM), units.texts[0]


def units_by_key(
    rows: Sequence[Row], texts: Sequence[str], unit: Unit, *, reference: int = 0
) -> Units:
    """Return units whose text the caller has chosen; those of an episode are joined."""
    members: Sequence[Sequence[int]] = [[n] for n in range(len(rows))]
    if unit == "episode":
        # All rows, also plain ones: only the caller's text is compared here.
        members = _episodes(rows, set(range(len(rows))), reference)
    joined = ["\n".join(texts[row] for row in rows_of) for rows_of in members]
    return Units(members, joined, joined, joined, [0] * len(members))


def check_unit(unit: str) -> None:
    """Refuse an unknown unit."""
    if unit not in UNITS:
        listed = ", ".join(map(repr, UNITS))
        raise ConfigError(f"unit must be one of {listed}, got {unit!r}{did_you_mean(unit, UNITS)}")


def by_context(contexts: Sequence[int], numbers: Sequence[int]) -> list[list[int]]:
    """Return `numbers` of units, in their order, apart by the units' instructions."""
    if not any(contexts):
        return [list(numbers)]
    groups: dict[int, list[int]] = defaultdict(list)
    for number in numbers:
        groups[contexts[number]].append(number)
    return list(groups.values())


# ── rows and their episodes ───────────────────────────────────────────────────────────────────────


def _texts(row: Row) -> tuple[str, str]:
    if isinstance(row, TrajectoryItem):
        return row.state, row.action
    return state_of(row), action_of(row)


def _may_share(row: Row) -> bool:
    """Return whether a row can share text with others: it is a chat, or a step of an episode."""
    if isinstance(row, TrajectoryItem):
        # "[" may begin a transcript's role; looking closer would cost as much as parsing it.
        return bool(row.messages) or row.episode_id is not None or row.state.startswith("[")
    return (
        bool(row.get("messages"))
        or value_of(row, "episode_id") is not None
        or state_of(row).startswith("[")
    )


def _episodes(rows: Sequence[Row], chosen: set[int], reference: int) -> list[list[int]]:
    """Group rows by task and episode; steps are in the order of `step` if all have one."""
    groups: dict[Hashable, list[int]] = {}
    for index in sorted(chosen):
        episode = value_of(rows[index], "episode_id")
        # A tuple of one cannot equal a key of three, so a row without an episode stays alone.
        key: Hashable = (index,)
        if episode is not None:
            # By repr, since a mapping's values may be lists. The task is part of the key, because
            # some tools number episodes anew within each task.
            key = (index < reference, repr(value_of(rows[index], "task_id")), repr(episode))
        groups.setdefault(key, []).append(index)
    return [_in_order(rows, group) for group in groups.values()]


def _in_order(rows: Sequence[Row], group: list[int]) -> list[int]:
    if len(group) == 1:
        return group
    steps = [value_of(rows[index], "step") for index in group]
    # With any step unknown, the order of the data is the best there is.
    if all(isinstance(step, int) for step in steps):
        order = dict(zip(group, cast("list[int]", steps), strict=True))
        return sorted(group, key=order.__getitem__)
    return group


# ── messages ──────────────────────────────────────────────────────────────────────────────────────


def _turns(row: Row, state: str) -> list[StateMessage]:
    """Return the messages of a state; a state without roles is one turn."""
    messages = row.messages if isinstance(row, TrajectoryItem) else row.get("messages")
    if isinstance(messages, Sequence) and messages and not isinstance(messages, str):
        return [_turn(message) for message in messages if isinstance(message, Mapping)]
    return turns_in(state)


def turns_in(state: str) -> list[StateMessage]:
    """Return the turns of a state in the form of captured items (`[role]` above each message)."""
    marks = list(_ROLE.finditer(state))
    if not marks or marks[0].start() != 0:
        return [StateMessage("", state)]
    ends = [mark.start() for mark in marks[1:]] + [len(state)]
    return [
        StateMessage(mark[1], state[mark.end() : end].strip("\n"))
        for mark, end in zip(marks, ends, strict=True)
    ]


def _turn(message: Mapping[str, object]) -> StateMessage:
    calls = message.get("tool_calls")
    lines = [text_of(message.get("content"))]
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        lines += [write_call(call) for call in calls if isinstance(call, Mapping)]
    return StateMessage(str(message.get("role", "")), "\n".join(filter(None, lines)))


def _added(
    episode: Sequence[int],
    turns: Mapping[int, list[StateMessage]],
    whole: Sequence[RowText],
    instructions: Sequence[StateMessage],
) -> Iterable[RowText]:
    """Yield the text that each step adds to the steps before it; `instructions` are left out."""
    # Counted and not a set: a user may say the same thing twice, which is new text.
    known = Counter(instructions)
    earlier: list[RowText] = []
    for position, index in enumerate(episode):
        mine = turns[index]
        left = Counter(known)
        fresh: list[StateMessage] = []
        for turn in mine:
            if left[turn] > 0:
                left[turn] -= 1
            elif not (
                position and turn.role == "assistant"
            ):  # an earlier answer of the agent itself
                fresh.append(turn)
        # A state without roles cannot be compared turn by turn, only as text.
        if position and len(mine) == 1 and not mine[0].role:
            state = _tail(whole[index].state, earlier)
        # Nothing was left out, so the state stays word for word as it is.
        elif len(fresh) == len(mine):
            state = whole[index].state
        else:
            state = "\n\n".join(turn.text for turn in fresh)
        yield RowText(index, state, whole[index].action)
        # The larger of both counts: this step's state contains the earlier ones.
        known |= Counter(mine)
        earlier.append(whole[index])


def _tail(state: str, earlier: Sequence[RowText]) -> str:
    """Return a plain state without the earlier state and action that it begins with."""
    # The latest first, which covers most of the state.
    for before in reversed(earlier):
        if before.state and state.startswith(before.state):
            tail = state[len(before.state) :]
            at = tail.find(before.action) if before.action else -1
            # The earlier action may come after a label such as "Assistant: ".
            return tail[at + len(before.action) :] if 0 <= at <= _LABEL_LENGTH else tail
    return state


def _instructions(
    turns: Sequence[StateMessage], leads: Counter[tuple[StateMessage, ...]]
) -> list[StateMessage]:
    """Return the turns of a first step that only instruct the agent."""
    lead = _lead(turns)
    # Worked examples are the same before different tasks; an opening that occurs once is the task.
    shared = set(lead) if leads[lead] > 1 else set()
    return [turn for turn in turns if turn.role in _SYSTEM or turn in shared]


def _lead(turns: Sequence[StateMessage]) -> tuple[StateMessage, ...]:
    """Return the turns before the last user turn, system messages aside."""
    last = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=0)
    return tuple(turn for turn in turns[:last] if turn.role not in _SYSTEM)


def _shared_leads(
    turns: Mapping[int, list[StateMessage]], episodes: Sequence[Sequence[int]]
) -> Counter[tuple[StateMessage, ...]]:
    """Count, for each opening, the different turns that follow it at the start of an episode."""
    pairs: set[tuple[tuple[StateMessage, ...], StateMessage]] = set()
    for episode in episodes:
        first = turns[episode[0]]
        if lead := _lead(first):
            # A set: the same task many times over must not make its opening look shared.
            pairs.add((lead, [turn for turn in first if turn.role == "user"][-1]))
    return Counter(lead for lead, _ in pairs)


# ── instructions ──────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Compared:
    """A unit under construction: the text that each step adds, and the instructions."""

    parts: list[RowText]
    instructions: str = ""
    context: int = 0
    """Number of its instructions; units are only compared with units of the same number."""
    residue: str = ""
    """The words of its instructions that other units do not share."""

    def joined(self, texts: Iterable[str]) -> str:
        """Return the texts of its steps as one, after the words of its instructions to compare."""
        joined = "\n".join(texts)
        return f"{self.residue}\n{joined}" if self.residue else joined


def _number_contexts(units: Sequence[Compared]) -> None:
    """Number the instructions of all units, and note which of their words are not shared."""
    distinct = list(dict.fromkeys(unit.instructions for unit in units))
    measure = Measure(SAME_INSTRUCTIONS)
    words = {text: measure.words(text) for text in distinct}
    long = [text for text in distinct if len(words[text]) > SHORT_INSTRUCTIONS]
    leader = list(range(len(long)))
    for left, right in ties(long, measure):
        # Few instructions are distinct, so this simple union is fast enough.
        leader = [min(leader[left], leader[right]) if at in (leader[left], leader[right]) else at
                  for at in leader]  # fmt: skip
    groups: dict[int, list[str]] = defaultdict(list)
    for text, at in zip(long, leader, strict=True):
        groups[at].append(text)
    numbered = {text: at + 1 for text, at in zip(long, leader, strict=True)}
    residue = dict.fromkeys(distinct, "")
    # Short instructions are compared whole, together with the rest of the row.
    residue |= {text: text for text in distinct if text not in numbered}
    for texts in groups.values():
        residue |= _not_common({text: words[text] for text in texts}, measure.ngram)
    for unit in units:
        unit.context = numbered.get(unit.instructions, 0)
        unit.residue = residue[unit.instructions]


def _not_common(words: Mapping[str, list[str]], ngram: int) -> dict[str, str]:
    """Return, for similar texts, the words that most of the texts do not have at that position."""
    often = Counter(
        gram for text in words.values() for gram in set(_grams(text, ngram))
    )  # in how many of the texts each n-gram occurs
    residue: dict[str, str] = {}
    for text, mine in words.items():
        common = [False] * len(mine)
        for at, gram in enumerate(_grams(mine, ngram)):
            # Common to more than half: a date or a name that varies is in no majority.
            if 2 * often[gram] > len(words):
                common[at : at + ngram] = [True] * ngram
        residue[text] = " ".join(
            word for word, shared in zip(mine, common, strict=True) if not shared
        )
    return residue


def _grams(words: Sequence[str], ngram: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[at:] for at in range(ngram)), strict=False))


_SYSTEM = frozenset({"system", "developer"})
_ROLE = re.compile(
    r"(?:\A|(?<=\n\n))\[(system|developer|user|assistant|tool(?: [^\]\n]*)?)\](?:\n|\Z)"
)
_LABEL_LENGTH = 40
"""The maximum length of a role's label before an earlier action, in characters."""
