"""Journal of a step's finished episodes, so that a killed run does not play them again.

Each step of a run with checkpoints has a file in `output_dir/episodes`: a header that names the
weights, then one line of JSON for each finished and scored episode. A resumed run that gets to the
same step with the same weights takes the episodes from there. Files of steps that a checkpoint
covers are removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orbiter.train.agents.episode import Episode
from orbiter.train.agents.streams import turns_to_streams
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.session import Session
from orbiter.train.engine.thread import work
from orbiter.train.errors import StorageError
from orbiter.train.resume_journal import ResumeJournal, read_journal
from orbiter.train.serve.live import Turn
from orbiter.train.verl.reward import SampleScores

log = logging.getLogger(__name__)

FOLDER = "episodes"


class EpisodeAttempt(NamedTuple):
    """Identifies one episode of a step."""

    place: int
    """Number of the task in the step."""
    number: int
    """Number of the episode of this task."""
    seed: int


class EpisodeJournal:
    """The finished episodes of one step, on disk."""

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        """Open the file at `path`; episodes under another header are discarded.

        Raises:
            StorageError: another process writes it, or it cannot be read.
        """
        # lock first, so that another process's journal is not discarded
        self._log = ResumeJournal(path)
        try:
            self._known = _read(path, header)
        except BaseException:
            self._log.close()
            raise
        # Empty, or under another header: the file restarts with this run's header.
        if not self._known:
            self._log.clear()
            self._log.append(_encode(header))
        else:
            log.info("%d finished episodes of this step are not played again", len(self._known))

    def find(self, task: object, attempt: EpisodeAttempt) -> tuple[Episode, SampleScores] | None:
        """Return an episode that finished before the run was interrupted, with its scores."""
        record = self._known.get(attempt)
        return None if record is None else _restored(task, attempt, record)

    def add(self, attempt: EpisodeAttempt, episode: Episode, scores: SampleScores) -> None:
        """Store a finished episode; one with contents that JSON cannot represent is left out."""
        record = {
            "place": attempt.place,
            "number": attempt.number,
            "seed": attempt.seed,
            "output": episode.output,
            "stop_reason": episode.stop_reason,
            "error": episode.error,
            "step_rewards": episode.step_rewards,
            "step_reward_turns": episode.step_reward_turns,
            "seconds": episode.seconds,
            "turns": [asdict(turn) for turn in episode.turns],
            "scores": scores._asdict(),
        }
        try:
            line = _encode(record)
        except (TypeError, ValueError) as error:
            log.debug("an episode is not kept in the journal: %s", error)
            return
        self._log.append(line)

    def close(self) -> None:
        """Release the file."""
        self._log.close()


async def open_journal(session: Session, step: int) -> EpisodeJournal | None:
    """Open the journal of a step; None for a run without checkpoints, which cannot be resumed."""
    folder = _folder(session)
    if folder is None:
        return None
    # Before the new file is opened, so that finished steps do not pile up.
    remove_covered(session)
    # The header ties the episodes to the weights: other weights would have played differently.
    header = {"step": step, "weights": await work(_fingerprint, session.policy)}
    return EpisodeJournal(folder / f"{step:08d}.jsonl", header)


def remove_covered(session: Session) -> None:
    """Remove the journals of steps that the newest checkpoint covers."""
    folder = _folder(session)
    if folder is None or not folder.is_dir():
        return
    left = False
    for path in sorted(folder.iterdir()):
        number = path.name.split(".")[0]
        # Strictly below: the step of the checkpoint itself may still be in progress.
        if number.isdecimal() and int(number) < session.saved_step:
            path.unlink(missing_ok=True)
        else:
            left = True
    if not left:
        shutil.rmtree(folder, ignore_errors=True)


def _folder(session: Session) -> Path | None:
    config = session.config
    if config.output_dir is None or config.save_every < 1:
        return None
    return Path(config.output_dir) / FOLDER


def _fingerprint(policy: Policy) -> str:
    """Return a digest of the sums of all trained tensors, which any update changes."""
    named = policy.named_trainable()
    # In float64, so that a small change of one weight does not vanish in the sum.
    sums = torch.stack([tensor.detach().double().sum().cpu() for tensor in named.values()])
    # A digest of all weights would take seconds for a large model, at every step.
    return hashlib.blake2b(sums.numpy().tobytes(), digest_size=16).hexdigest()


def _read(path: Path, header: Mapping[str, object]) -> dict[EpisodeAttempt, dict[str, Any]]:
    """Return the episodes of a journal with this header; a torn last line is left out."""
    try:
        records = [json.loads(line.record) for line in read_journal(path)]
        # Steps are replayed with other seeds or weights after a change; such episodes do not fit.
        if not records or records[0] != header:
            return {}
        return {EpisodeAttempt(r["place"], r["number"], r["seed"]): r for r in records[1:]}
    except StorageError as damage:
        log.warning("%s; the episodes of this step are played again", damage)
        return {}
    except OSError as error:
        raise StorageError(f"cannot read the journal {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged; its episodes are played again", path)
        return {}


def _encode(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, allow_nan=False).encode()


def _restored(
    task: object, attempt: EpisodeAttempt, record: Mapping[str, Any]
) -> tuple[Episode, SampleScores]:
    turns = tuple(Turn(**turn) for turn in record["turns"])
    episode = Episode(
        task=task,
        attempt=attempt.number,
        result=None,  # only rewards use the result, and they have run already
        output=record["output"],
        turns=turns,
        # Derived from the turns, so they are not stored.
        streams=tuple(turns_to_streams(turns)),
        stop_reason=record["stop_reason"],
        error=record["error"],
        step_rewards=tuple(record["step_rewards"]),
        step_reward_turns=tuple(record["step_reward_turns"]),
        seconds=record["seconds"],
    )
    return episode, SampleScores(**record["scores"])
