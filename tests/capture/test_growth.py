"""Memory and journal grow with what is new in a turn, not with the whole conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record
from orbiter.train.trajectory.turns import Shortened
from tests.capture.server import ModelServer

TOOL = {"type": "function", "function": {"name": "look", "description": "Looks up. " * 20}}


def test_fifty_turns_take_a_fifteenth_of_their_whole_prefixes(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    dataset = TrajectoryDataset(path=journal)
    with ModelServer(reply=lambda _: "I read the next row and note it down. " * 5) as server:
        messages: list[Any] = [{"role": "system", "content": "You keep the books. " * 40}]
        with record(dataset, agent="a", task_id="t") as episode, httpx2.Client() as client:
            for turn in range(50):
                row = f"row {turn}: 12 apples and 3 pears, sold at noon; " * 18
                messages.append({"role": "user", "content": row})
                body = {"model": "m", "messages": messages, "tools": []}
                answer = client.post(f"{server.url}/chat/completions", json=body).json()
                messages.append(answer["choices"][0]["message"])
            episode.reward(1.0, gamma=0.99)
    whole = sum(len(msgspec.json.encode(item.to_dict())) for item in dataset)
    assert whole / journal.stat().st_size >= 15
    stored = dataset._store.kept
    held = sum(len(json.dumps(list(s.tail if isinstance(s, Shortened) else s))) for s in stored)
    assert whole / held >= 15
    dataset.close()
    with TrajectoryDataset(path=journal) as again:
        assert list(again) == list(dataset)
