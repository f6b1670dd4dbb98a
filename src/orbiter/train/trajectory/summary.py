"""The summary of a data set: counts, and mean rewards with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from orbiter.train.evaluation import Interval, mean_interval
from orbiter.train.trajectory.item import TrajectoryItem

SHOWN = 5
"""The number of items shown in a notebook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Counts and mean rewards, each mean with its 95 % interval.

    Steps of one episode are not independent, so the intervals resample episodes (each as the mean
    of its steps); an item without an episode counts as one.
    """

    count: int
    """Kept items."""
    waiting: int
    """Items that wait for a reward."""
    episodes: int
    reward: Interval | None
    """The mean over all items; None if there are no items."""
    by_agent: Mapping[str, Interval]
    by_task: Mapping[str, Interval]

    def __str__(self) -> str:
        lines = [
            f"{self.count} items in {self.episodes} episodes, {self.waiting} waiting for a reward",
            f"mean reward {self.reward if self.reward is not None else 'unknown'}",
        ]
        for title, groups in (("agent", self.by_agent), ("task", self.by_task)):
            lines += [f"  {title} {name}: {interval}" for name, interval in groups.items()]
        return "\n".join(lines)


def summarise(items: Iterable[TrajectoryItem], *, waiting: int) -> Summary:
    """Return the summary of items with rewards."""
    everything: _Rewards = {}
    agents: dict[str, _Rewards] = {}
    tasks: dict[str, _Rewards] = {}
    episodes: set[str] = set()
    count = 0
    for count, item in enumerate(items, start=1):
        # A number cannot equal an episode's id, which is a text.
        unit = count if item.episode_id is None else item.episode_id
        if item.episode_id is not None:
            episodes.add(item.episode_id)
        groups = [everything]
        if item.agent is not None:
            groups.append(agents.setdefault(item.agent, {}))
        if item.task_id is not None:
            groups.append(tasks.setdefault(item.task_id, {}))
        for group in groups:
            group.setdefault(unit, []).append(item.reward or 0.0)
    return Summary(
        count=count,
        waiting=waiting,
        episodes=len(episodes),
        reward=_interval(everything) if count else None,
        by_agent={name: _interval(group) for name, group in agents.items()},
        by_task={name: _interval(group) for name, group in tasks.items()},
    )


def as_html(items: Sequence[TrajectoryItem], facts: Sequence[str]) -> str:
    """Return an HTML table of the facts and the latest items; all text is escaped."""
    rows = "".join(
        f"<tr><td>{index}</td><td>{_cell(item.state)}</td><td>{_cell(item.action)}</td>"
        f"<td>{item.reward}</td></tr>"
        for index, item in enumerate(items[-SHOWN:], start=max(0, len(items) - SHOWN))
    )
    return (
        f"<p><b>TrajectoryDataset</b>: {escape(', '.join(facts))}</p><table><thead><tr><th></th>"
        f"<th>state</th><th>action</th><th>reward</th></tr></thead><tbody>{rows}</tbody></table>"
    )


_Rewards = dict[str | int, list[float]]


def _interval(rewards: _Rewards) -> Interval:
    # Resampled by episode: steps of one episode share its luck and would make the interval too
    # narrow.
    return mean_interval(sum(unit) / len(unit) for unit in rewards.values())


def _cell(text: str) -> str:
    return escape(text if len(text) <= 80 else text[:79] + "…")
