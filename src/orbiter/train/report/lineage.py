"""Read an evolution for the page: each member's parents, changes to its text, and its scores.

{"name", "strategy", "members": [{"name", "parents", "score", "n", "text"|"diff", ...}],
 "best": place, "trials": [[number, score, best so far], ...], "failures", "cost"}
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from orbiter.train.errors import StorageError
from orbiter.train.report.shown import cut
from orbiter.train.report.training import short
from orbiter.train.resume_journal import read_journal

MEMBERS, MEMBER_BYTES = 120, 90_000
"""Maximum number of members on a page, and their size in bytes. The ancestors of the best one come
first, then the others by score."""
POINTS = 1_000
CONFIRMED = ", confirmed"
"""Suffix of the winner's name in the lines of its fresh evaluations."""
CHARS = 4_000
"""Maximum length of a candidate's text."""
_TOKENS = re.compile(r"\n|[^\S\n]+|\w+|[^\w\s]")
"""Words, punctuation and spaces; each line end is a separate token."""
AROUND = 120
"""Characters of unchanged text kept on either side of a change; the rest is left out."""


@dataclass(slots=True)
class _Member:
    name: str
    parents: Sequence[str]
    text: str | None
    """None if only scores are known."""
    scores: dict[int, float] = field(default_factory=dict[int, float])
    """Score by evaluation number."""
    confirmed: list[float] = field(default_factory=list[float])
    """Fresh evaluations of the winner; if there are any, their mean is its score."""
    error: str = ""

    @property
    def score(self) -> float | None:
        scores = self.confirmed or list(self.scores.values())
        return fmean(scores) if scores else None


@dataclass(slots=True)
class _Family:
    members: dict[str, _Member] = field(default_factory=dict[str, _Member])
    run: Mapping[str, Any] = field(default_factory=dict[str, Any])
    trials: dict[tuple[str, int], float | None] = field(
        default_factory=dict[tuple[str, int], float | None]
    )
    """The last outcome of each evaluation: a resumed run repeats the failed ones."""
    best: str | None = None
    """Name of the winner, once the run has ended."""
    cost: float = 0.0

    def member(self, name: str) -> _Member:
        return self.members.setdefault(name, _Member(name, (), None))

    def take(self, line: Mapping[str, Any]) -> None:
        if "run" in line:
            self.run = line["run"]
            for number, candidate in enumerate(line.get("initial", ())):
                self.member(f"initial {number}").text = as_text(candidate)
        elif "slot" in line:
            child = self.member(f"child {line['slot']}")
            child.parents, child.text = line["parents"], as_text(line["child"])
            self.cost += line["cost"]
        elif "end" in line:
            self.best = line["end"]["best"]
        elif "held_out" in line:
            pass  # a score of the winner, which "end" has named
        else:
            self.best = None  # the run continues after an earlier end
            self._add_trial(line)

    def _add_trial(self, line: Mapping[str, Any]) -> None:
        name = line["m"].removesuffix(CONFIRMED)
        member, score = self.member(name), line.get("s")
        if score is None:
            member.error = str(line.get("x") or "failed")
        # The winner's fresh evaluations carry its name with a suffix.
        elif name != line["m"]:
            member.confirmed.append(float(score))
        else:
            member.scores[line["r"]] = float(score)
            member.error = ""
        self.trials[line["m"], line["r"]] = score
        self.cost += line.get("c", 0.0)

    def winner(self) -> _Member | None:
        """Return the best member, by the final result if there is one, or else by the scores."""
        if self.best in self.members:
            return self.members[self.best]
        scored = [member for member in self.members.values() if member.scores]
        return max(scored, key=lambda member: fmean(member.scores.values()), default=None)


def read_lineage(path: Path, name: str) -> dict[str, Any]:
    """Read the journal of an evolution, which may still be growing.

    Raises:
        StorageError: a line is damaged.
    """
    family = _Family()
    for number, _, record, _ in read_journal(path):
        try:
            family.take(json.loads(record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{path}:{number}: not a line of an evolution: {error}") from error
    best = family.winner()
    members = _chosen(family, best)
    places = {member["name"]: index for index, member in enumerate(members)}
    for member in members:
        member["parents"] = [places[name] for name in member["parents"] if name in places]
    return {
        "name": name,
        "strategy": str(family.run.get("strategy", "")).rpartition(".")[2],
        "settings": {k: v for k, v in family.run.items() if k != "initial"},
        "members": members,
        "members_in_all": len(family.members),
        "best": None if best is None else places[best.name],
        "trials": _progress(
            [score for (name, _), score in family.trials.items() if not name.endswith(CONFIRMED)]
        ),
        "evaluations": len(family.trials),
        "failures": sum(score is None for score in family.trials.values()),
        "cost": short(family.cost),
    }


def _chosen(family: _Family, best: _Member | None) -> list[dict[str, Any]]:
    """Return the members to show, in order of creation."""
    line: list[_Member] = []
    while best is not None and best not in line:
        line.append(best)
        best = family.members.get(best.parents[0]) if best.parents else None
    names = {member.name for member in line}
    others = [m for m in family.members.values() if m.name not in names and m.text is not None]
    # Members without a score come last.
    others.sort(key=lambda member: -(member.score if member.score is not None else -1e300))
    shown: dict[str, dict[str, Any]] = {}
    room = MEMBER_BYTES
    for member in [*line, *others][:MEMBERS]:
        doc = _shown(member, family)
        room -= len(json.dumps(doc))
        # At least one, however long.
        if room < 0 and shown:
            break
        shown[member.name] = doc
    return [shown[name] for name in family.members if name in shown]


def _shown(member: _Member, family: _Family) -> dict[str, Any]:
    score = member.score
    doc: dict[str, Any] = {
        "name": member.name,
        "parents": member.parents,
        "score": None if score is None else short(score),
        "n": len(member.confirmed or member.scores),
    }
    if member.error:
        doc["error"] = cut(member.error, 300)
    parent = family.members.get(member.parents[0]) if member.parents else None
    if member.text is not None and parent is not None and parent.text is not None:
        doc["diff"] = changes(cut(parent.text, CHARS), cut(member.text, CHARS))
    elif member.text is not None:
        doc["text"] = cut(member.text, CHARS)
    return doc


def changes(before: str, after: str) -> list[list[str]]:
    """Return a word-level diff as pieces: "=" kept, "-" removed, "+" added."""
    old, new = (_TOKENS.findall(text) for text in (before, after))
    # Common ends are cut off first, since difflib is quadratic.
    head = _alike(old, new)
    tail = _alike(old[head:][::-1], new[head:][::-1])
    end = (len(old) - tail, len(new) - tail)
    pieces = [
        *_piece("=", old[:head]),
        *_changed(old[head : end[0]], new[head : end[1]]),
        *_piece("=", old[end[0] :]),
    ]
    last = len(pieces) - 1
    return [
        [kind, _shortened(text, index, last) if kind == "=" else text]
        for index, (kind, text) in enumerate(pieces)
    ]


def _alike(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the common prefix, in tokens."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))


def _changed(old: Sequence[str], new: Sequence[str]) -> Iterator[list[str]]:
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            yield from _piece("=", old[a:b])
        else:
            yield from _piece("-", old[a:b])
            yield from _piece("+", new[c:d])


def _piece(kind: str, tokens: Sequence[str]) -> list[list[str]]:
    return [[kind, "".join(tokens)]] if tokens else []


def _shortened(text: str, index: int, last: int) -> str:
    """Shorten a long unchanged piece, keeping the text next to the changes."""
    if len(text) <= 3 * AROUND:
        return text
    head = "" if index == 0 else text[:AROUND]
    tail = "" if index == last else text[-AROUND:]
    return f"{head} […] {tail}"


def as_text(candidate: object) -> str:
    """Return a candidate from the journal as readable text."""
    if isinstance(candidate, str):
        return candidate
    if isinstance(candidate, dict):
        parts = candidate.get("fields", candidate)
        if isinstance(parts, dict) and all(isinstance(part, str) for part in parts.values()):
            return "\n".join(f"{name}: {part}" for name, part in parts.items())
    return json.dumps(candidate, ensure_ascii=False, indent=1)


def _progress(trials: Sequence[float | None]) -> list[list[float]]:
    """Return number, score and best so far of the scored trials, thinned out if there are many."""
    rows: list[list[float]] = []
    best = float("-inf")
    for number, score in enumerate(trials, start=1):
        if score is not None:
            best = max(best, score)
            rows.append([number, short(score), short(best)])
    # Rounded up, so that at most POINTS rows remain.
    every = -(-len(rows) // POINTS) or 1
    return rows[::every] + (rows[-1:] if rows and (len(rows) - 1) % every else [])
