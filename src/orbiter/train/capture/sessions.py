"""The proxy's sessions: one episode per session name in the URL."""

from __future__ import annotations

from collections import OrderedDict

from orbiter.train.capture.episode import Episode
from orbiter.train.capture.redact import Redactor
from orbiter.train.errors import DataError
from orbiter.train.json_files.fields import number
from orbiter.train.trajectory import TrajectoryDataset

REMEMBERED = 4096
"""Sessions held in memory; one that was idle for longer is resumed from its journal."""


class Sessions:
    """All sessions of a proxy, including those continued from an earlier run's journal."""

    def __init__(self, dataset: TrajectoryDataset, redactor: Redactor) -> None:
        """Count the steps that the dataset already has of each session."""
        self._dataset, self._redactor = dataset, redactor
        self._steps: dict[str, int] = {}
        for item in [*dataset, *dataset.waiting]:
            if item.episode_id is not None and item.step is not None:
                steps = self._steps.get(item.episode_id, 0)
                self._steps[item.episode_id] = max(steps, item.step + 1)
        self._episodes: OrderedDict[str, Episode] = OrderedDict()

    def episode(self, name: str) -> Episode:
        """Return a session's episode; a new name starts one."""
        episode = self._episodes.get(name)
        if episode is None:
            episode = self._episodes[name] = Episode(
                self._dataset,
                episode_id=name,
                redactor=self._redactor,
                first_step=self._steps.pop(name, 0),
            )
            self._forget_the_idle()
        self._episodes.move_to_end(name)
        return episode

    def describe(self, name: str, agent: object, task_id: object) -> None:
        """Set a session's agent and task.

        Raises:
            DataError: one of them is not a string.
        """
        for what, value in (("agent", agent), ("task_id", task_id)):
            if value is not None and not isinstance(value, str):
                raise DataError(f"{what} must be a text, got {value!r:.60}")
        episode = self.episode(name)
        episode.agent = agent if isinstance(agent, str) else episode.agent
        episode.task_id = task_id if isinstance(task_id, str) else episode.task_id

    def reward(self, name: str, reward: object, gamma: object) -> int:
        """Set the reward of a session's episode; return how many items were stored.

        Raises:
            DataError: the reward is not a number, or no item of the session waits for one.
        """
        given = number("reward", reward)
        return len(self._dataset.assign_reward(name, given, number("gamma", gamma)))

    def step_reward(self, name: str, reward: object) -> None:
        """Reward the latest call of a session.

        Raises:
            DataError: the reward is not a number, or no call waits for one.
        """
        self.episode(name).step_reward(number("reward", reward))

    def close(self) -> None:
        """End every session."""
        for episode in self._episodes.values():
            episode.leave()

    def _forget_the_idle(self) -> None:
        for name in list(self._episodes)[: max(0, len(self._episodes) - REMEMBERED)]:
            episode = self._episodes[name]
            if not episode.busy:
                self._steps[name] = episode.steps
                episode.leave()
                del self._episodes[name]
