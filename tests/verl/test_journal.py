"""The journal of a step's episodes: a killed run plays none of them twice, and none was changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from orbiter.train.agents.episode import Episode
from orbiter.train.agents.streams import turns_to_streams
from orbiter.train.errors import StorageError
from orbiter.train.serve.live import Turn
from orbiter.train.verl.journal import EpisodeAttempt, EpisodeJournal
from orbiter.train.verl.reward import SampleScores

HEADER = {"step": 3, "weights": "ab12"}
ATTEMPTS = [
    EpisodeAttempt(place, number, 7 * place + number) for place in (0, 1) for number in (0, 1)
]


def episode_of(attempt: EpisodeAttempt) -> Episode:
    turn = Turn(
        index=0,
        messages=[{"role": "user", "content": f"task {attempt.place}"}],
        tools=None,
        prompt_token_ids=[1, 2],
        token_ids=[attempt.seed, 3],
        logprobs=[-0.1, -0.2 * attempt.seed],
        finish_reason="stop",
        weights_version=3,
        reply={"role": "assistant", "content": "é\u2028"},
        continues=None,
        drift=False,
        temperature=1.0,
        started=0.125,
        ended=0.25,
    )
    return Episode(
        task=f"task {attempt.place}",
        attempt=attempt.number,
        result=None,
        output="é\u2028",
        turns=(turn,),
        streams=tuple(turns_to_streams((turn,))),
        stop_reason="done",
        error=None,
        step_rewards=(0.1,),
        step_reward_turns=(0,),
        seconds=0.125,
    )


def scores_of(attempt: EpisodeAttempt) -> SampleScores:
    return SampleScores([attempt.seed / 3], {"right": [attempt.seed / 3]}, 0)


def played(path: Path, header: dict[str, object], attempts: list[EpisodeAttempt]) -> int:
    """Play what the journal does not have, and return how many episodes that are."""
    journal, count = EpisodeJournal(path, header), 0
    for attempt in attempts:
        kept = journal.find(f"task {attempt.place}", attempt)
        if kept is None:
            journal.add(attempt, episode_of(attempt), scores_of(attempt))
            count += 1
        else:
            assert kept == (episode_of(attempt), scores_of(attempt))
    journal.close()
    return count


def test_what_was_played_is_taken_from_the_journal_exactly(tmp_path: Path) -> None:
    path = tmp_path / "00000003.jsonl"
    assert played(path, HEADER, ATTEMPTS[:2]) == 2
    assert played(path, HEADER, ATTEMPTS) == 2
    assert played(path, HEADER, ATTEMPTS) == 0


@pytest.mark.parametrize("header", [{**HEADER, "weights": "cd34"}, {**HEADER, "step": 4}])
def test_episodes_of_other_weights_or_another_step_are_played_again(
    header: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "j"
    assert played(path, HEADER, ATTEMPTS) == 4
    assert played(path, header, ATTEMPTS) == 4
    assert played(path, header, ATTEMPTS) == 0


def test_an_episode_torn_by_a_kill_is_played_again_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert played(path, HEADER, ATTEMPTS) == 4
    path.write_bytes(path.read_bytes()[:-20])
    assert played(path, HEADER, ATTEMPTS) == 1


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a changed score": lambda lines: [
        *lines[:2], lines[2].replace(b'"faults": 0', b'"faults": 1'), *lines[3:]
    ],
    "a line twice": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "two lines swapped": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "a line removed": lambda lines: [*lines[:2], *lines[3:]],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_journal_is_named_by_line_and_none_of_it_is_trained_on(
    damage: Callable[[list[bytes]], list[bytes]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    assert played(path, HEADER, ATTEMPTS) == 4
    lines = path.read_bytes().splitlines(keepends=True)
    assert damage(lines) != lines
    path.write_bytes(b"".join(damage(lines)))
    with caplog.at_level(logging.WARNING):
        assert played(path, HEADER, ATTEMPTS) == 4
    (warning,) = caplog.messages
    assert f"{path}:3" in warning or f"{path}:4" in warning
    assert warning.endswith("the episodes of this step are played again")


def test_two_runs_cannot_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = EpisodeJournal(path, HEADER)
    with pytest.raises(StorageError, match="held by process"):
        EpisodeJournal(path, {**HEADER, "weights": "cd34"})
    for attempt in ATTEMPTS:
        journal.add(attempt, episode_of(attempt), scores_of(attempt))
    journal.close()
    assert played(path, HEADER, ATTEMPTS) == 0
