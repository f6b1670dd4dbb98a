"""Records scores and children on disk as soon as they exist, one JSON line each.

A run started again in the same folder repeats the same steps, and takes finished evaluations and
mutations from the journal instead of repeating them. Only results are taken: a failed evaluation is
tried again. The state of the loop is not recorded; it follows from the lines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from typing_extensions import override

from orbiter.train.contained import check_contained
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.evolution.strategy import Score
from orbiter.train.resume_journal import ResumeJournal, differences

FILE_NAME = "evolution.jsonl"

SYNC_SECONDS = 1.0
"""Seconds between two fsyncs: the most that a power cut loses. A killed process loses nothing."""


class Birth(NamedTuple):
    """A child, as returned by `mutate` or `crossover`."""

    slot: int
    """Number of the slot that it was made for, counted over the run."""
    attempt: int
    """How many times the child was varied again because it equalled an earlier candidate; 0 if
    never."""
    candidate: bytes
    """The candidate, as the codec encoded it."""
    cost: float
    parents: tuple[str, ...] = ()
    """Names of the members it was made from."""


class Trial(NamedTuple):
    """A finished evaluation."""

    name: str
    """The number of the member."""
    replicate: int
    score: Score | None
    error: str | None
    cost: float = 0.0


class HeldOut(NamedTuple):
    """The score of a run's best candidate on held-out data."""

    key: str
    """The key of the candidate."""
    holdout: str
    """Digest of the function that scored it, with its data."""
    score: float


class RunJournal:
    """The journal of a run without a folder, which stores nothing."""

    trials: Mapping[tuple[str, int], Trial] = {}
    """Evaluations of earlier processes that need not be repeated."""
    partial: Mapping[tuple[str, int], Score] = {}
    """Scores of earlier processes of which some instances failed."""
    births: Mapping[tuple[int, int], Birth] = {}
    lost_cost: float = 0.0
    """Cost of the evaluations of earlier processes that are tried again."""
    held_out: Mapping[tuple[str, str], float] = {}
    """Scores on held-out data, by the candidate's key and the digest of the function."""

    def write_trial(self, trial: Trial) -> None:
        """Record an evaluation."""

    def write_birth(self, birth: Birth) -> None:
        """Record a child."""

    def write_end(self, end: Mapping[str, object]) -> None:
        """Record the result of the run, for its report."""

    def write_held_out(self, held_out: HeldOut) -> None:
        """Record the score on held-out data."""

    def sync_now_and_then(self) -> None:
        """Make all records safe against a power cut, at most once a second."""

    def close(self) -> None:
        """Close the file."""


class FileRunJournal(RunJournal):
    """The journal in a folder."""

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, object],
        initial: Sequence[bytes | None] = (),
    ) -> None:
        """Open the journal in `folder`, or begin one with the encoded `initial` candidates.

        Raises:
            ConfigError: the folder holds the journal of another run; names what differs.
            StorageError: the journal cannot be read, or another process writes it.
        """
        path = folder / FILE_NAME
        check_contained(folder, to_write=True)
        self.trials: dict[tuple[str, int], Trial] = {}
        self.partial: dict[tuple[str, int], Score] = {}
        self.births: dict[tuple[int, int], Birth] = {}
        self.lost_cost = 0.0
        self.held_out: dict[tuple[str, str], float] = {}
        self._log = ResumeJournal(path)
        self._synced = time.monotonic()
        try:
            self._read(fingerprint)
            if not self._log.recovered.records:
                # Raw, since the codec has already written JSON.
                texts = [None if text is None else msgspec.Raw(text) for text in initial]
                self._append({"run": dict(fingerprint), "initial": texts})
        except BaseException:  # otherwise nothing in this process could open the folder again
            self._log.close()
            raise

    @override
    def write_trial(self, trial: Trial) -> None:
        """Append an evaluation."""
        line: dict[str, Any] = {"m": trial.name, "r": trial.replicate}
        if trial.score is not None:
            line["s"] = trial.score.value
            if trial.score.instances is not None:
                line["i"] = dict(trial.score.instances)
            if trial.score.feedback is not None:
                line["f"] = trial.score.feedback
            if trial.score.traces is not None:
                line["t"] = dict(trial.score.traces)
            if trial.score.failed:
                line["e"] = dict(trial.score.failed)
        else:
            line["x"] = trial.error
        if trial.cost:
            line["c"] = trial.cost
        self._append(line)

    @override
    def write_birth(self, birth: Birth) -> None:
        """Append a child."""
        self._append(
            {
                "slot": birth.slot,
                "attempt": birth.attempt,
                "child": msgspec.Raw(birth.candidate),
                "cost": birth.cost,
                "parents": birth.parents,
            }
        )

    @override
    def write_end(self, end: Mapping[str, object]) -> None:
        """Append the result of the run."""
        self._append({"end": dict(end)})

    @override
    def write_held_out(self, held_out: HeldOut) -> None:
        """Append the score on held-out data."""
        self._append({"held_out": held_out._asdict()})

    @override
    def sync_now_and_then(self) -> None:
        """Force all records onto the disk, if a second has passed since the last time."""
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._log.sync()
            self._synced = time.monotonic()

    @override
    def close(self) -> None:
        """Force all records onto the disk, and close the file."""
        self._log.sync()
        self._log.close()

    def _append(self, line: Mapping[str, object]) -> None:
        self._log.append(_encode(line))

    def _read(self, fingerprint: Mapping[str, object]) -> None:
        for number, _, record, _ in self._log.replay():
            try:
                self._read_record(_decode(record), fingerprint)
            except (msgspec.DecodeError, KeyError, TypeError) as error:
                raise StorageError(
                    f"{self._log.path}:{number}: not a line of an evolution: {error}"
                ) from error

    def _read_record(self, line: dict[str, Any], fingerprint: Mapping[str, object]) -> None:
        if "run" in line:
            _check_same_run(line["run"], fingerprint)
        elif "end" in line:
            pass  # for the report; a resumed run writes another one
        elif "held_out" in line:
            held_out = HeldOut(**line["held_out"])
            self.held_out[held_out.key, held_out.holdout] = held_out.score
        elif "slot" in line:
            child = _encode(line["child"])
            birth = Birth(
                line["slot"], line["attempt"], child, line["cost"], tuple(line["parents"])
            )
            self.births[birth.slot, birth.attempt] = birth
        else:
            self._read_trial(line)

    def _read_trial(self, line: dict[str, Any]) -> None:
        key, cost = (line["m"], line["r"]), line.get("c", 0.0)
        if "s" not in line:
            # a failure is not a result: it is tried again, and its cost still counts
            self.lost_cost += cost
            return
        failed = line.get("e")
        score = Score(line["s"], line.get("i"), line.get("f"), line.get("t"), cost, failed)
        if failed:
            # Kept for the retry, which needs only the instances that failed.
            self.partial[key] = score
            self.lost_cost += cost
            return
        # A later complete score replaces the partial one.
        self.partial.pop(key, None)
        self.trials[key] = Trial(*key, score, None, cost)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def _check_same_run(recorded: Mapping[str, object], fingerprint: Mapping[str, object]) -> None:
    # Through JSON, so that tuples and lists compare equal.
    present = json.loads(json.dumps(fingerprint))
    changes = [
        _change(name, recorded.get(name), present.get(name))
        for name in differences(recorded, present)
    ]
    if changes:
        raise ConfigError(
            f"run_dir holds the journal of another run, whose scores do not apply here "
            f"({'; '.join(changes)}): choose a new folder, or undo these changes"
        )


def _change(name: str, before: object, now: object) -> str:
    if name == "initial" or name.startswith("strategy."):
        # digests, which would tell a reader nothing
        return f"{name} changed"
    return f"{name} was {before!r}, is {now!r}"
