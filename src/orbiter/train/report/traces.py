"""Show captured traces: the episodes of a file, turn by turn, those of one task side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orbiter.train.chat.conversation import answer_of, prompt_of
from orbiter.train.errors import DataError
from orbiter.train.report.document import SAMPLE_BYTES, Doc
from orbiter.train.report.samples import choose, fact_of
from orbiter.train.report.write import write_page
from orbiter.train.trajectory import TrajectoryItem

PAGE_SUFFIX = ".report.html"


def write_traces(
    path: str | os.PathLike[str],
    items: Iterable[TrajectoryItem],
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a page that shows the episodes of captured items; return its path.

    Args:
        path: The file that the items are from; names the page.
        items: Items of any format; those with the same `episode_id` are one episode.
        out: The page; None writes it next to the file, as `traces.report.html`.

    Raises:
        DataError: there are no items.
        StorageError: the page cannot be written.
    """
    source = Path(path)
    target = source.with_suffix(PAGE_SUFFIX) if out is None else Path(out)
    return write_page(target, [traces_document(source.name, items)])


def traces_document(name: str, items: Iterable[TrajectoryItem]) -> Doc:
    """Return the page's document for captured items."""
    groups = group_records(items)
    if not groups:
        raise DataError(f"{name} holds no items to show")
    facts = [fact_of(group, number) for number, group in enumerate(groups)]
    training: Doc = {
        "name": name,
        "kind": "traces",
        "config": {},
        "environment": {},
        "steps": [],
        "every": 1,
        "series": {},
        "spread": None,
        "gains": [],
        "validations": [],
        "groups": choose(facts, lambda number: groups[number], max_bytes=2 * SAMPLE_BYTES),
        "groups_in_all": len(groups),
    }
    episodes = sum(len(group["outputs"]) for group in groups)
    turns = sum(len(output["turns"]) for group in groups for output in group["outputs"])
    return {
        "name": name,
        "title": name,
        "summary": f"{episodes} episodes with {turns} turns, of {len(groups)} tasks.",
        "traces": True,
        "facts": {},
        "trainings": [training],
        "evolutions": [],
        "exams": None,
        "tasks": [],
        "tasks_in_all": 0,
        "ledger": [],
        "cost": {},
        "comparison": None,
    }


def group_records(items: Iterable[TrajectoryItem]) -> list[dict[str, Any]]:
    """Return a record for each task, in the form of a run's samples, with its episodes."""
    episodes: dict[object, list[TrajectoryItem]] = {}
    for index, item in enumerate(items):
        # A number cannot equal an id, which is a text.
        episodes.setdefault(item.episode_id or index, []).append(item)
    groups: dict[str, dict[str, Any]] = {}
    for name, steps in episodes.items():
        if all(item.step is not None for item in steps):
            steps.sort(key=lambda item: item.step or 0)
        first = steps[0]
        # Attempts without a task id belong together if they begin with the same state.
        key = first.task_id or first.state
        group = groups.setdefault(
            key,
            {
                "step": len(groups) + 1,
                "prompt": first.state,
                "outputs": [],
                **({} if first.task_id is None else {"task": first.task_id}),
            },
        )
        group["outputs"].append(_episode(str(name), steps))
    return list(groups.values())


def _episode(name: str, steps: Sequence[TrajectoryItem]) -> dict[str, Any]:
    """Return an episode; its reward is that of its last step that has one."""
    known = [item.reward for item in steps if item.reward is not None]
    failed = next((item.metadata["error"] for item in steps if item.metadata.get("error")), None)
    error = steps[-1].metadata.get("episode_error") or failed
    return {
        "name": name,
        "text": steps[-1].action,
        "reward": known[-1] if known else None,
        "rewards": {},
        "error": None if error is None else str(error),
        "turns": [_turn(steps, index) for index in range(len(steps))],
    }


def _turn(steps: Sequence[TrajectoryItem], step: int) -> dict[str, Any]:
    item = steps[step]
    asked = prompt_of(item)
    if step:
        before = [*prompt_of(steps[step - 1]), answer_of(steps[step - 1])]
        # Otherwise the history was rewritten, and all of it is shown.
        if _begins_with(asked, before):
            asked = asked[len(before) :]
    tokens = item.metadata.get("output_tokens")
    return {
        "asked": asked,
        "answer": answer_of(item),
        "tokens": len(item.token_ids) if item.token_ids else tokens,
        "finish_reason": item.metadata.get("finish_reason"),
        "reward": item.reward,
    }


def _begins_with(
    messages: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether a conversation continues another one, judged by roles and plain texts."""
    if len(messages) < len(before):
        return False
    return all(
        now["role"] == then["role"]
        # An answer may come back in another form, such as without its reasoning.
        and (now["role"] == "assistant" or now.get("content") == then.get("content"))
        for now, then in zip(messages, before, strict=False)
    )
