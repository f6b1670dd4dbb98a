"""A process that captures until it is killed: `python writer.py JOURNAL ACKNOWLEDGED START`.

Writes the number of every step to ACKNOWLEDGED as soon as its capture has returned, and of every
episode as soon as its reward is assigned.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

EPISODE = 8
"""Steps in an episode; the last one scores those before it."""


def item(number: int) -> TrajectoryItem:
    """Return the item that has this number, always the same."""
    episode, step = divmod(number, EPISODE)
    said = "".join(f"turn {turn} of episode {episode}. " * 4 for turn in range(step + 1))
    return TrajectoryItem(
        said, f"answer {number}", task_id=str(number), episode_id=str(episode), step=step
    )


def scored(number: int) -> TrajectoryItem:
    """Return the item as it is kept once its episode is scored."""
    return replace(item(number), reward=1.0)


def main(path: str, acknowledged: str, start: int) -> None:
    ack = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    dataset = TrajectoryDataset(path=path)
    os.write(ack, b"ready\n")
    number = start
    while True:
        dataset.capture(item(number))
        os.write(ack, b"%d\n" % number)
        number += 1
        if number % EPISODE == 0:
            dataset.assign_reward(str(number // EPISODE - 1), 1.0)
            os.write(ack, b"episode %d\n" % (number // EPISODE - 1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
