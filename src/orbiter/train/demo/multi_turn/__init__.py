"""The leaderboard's multi-turn requests as an environment: tools with state, checked by state.

    from orbiter.train.demo.multi_turn import MultiTurn, load_tasks

    tasks = load_tasks(classes=["GorillaFileSystem"])
    trainer = VeRLTrainer(config, environment=MultiTurn)
    await trainer.evaluate([{"task_id": task.task_id} for task in tasks])

The requests, the tools' code and the right calls are in the wheel that the demo fetches (`BFCL`'s
`multi_turn_base`, Apache-2.0). The tools run in a child process, which gets a call as a name and
JSON arguments: no text of the model is ever evaluated.
"""

from __future__ import annotations

from orbiter.train.demo.multi_turn.environment import MultiTurn
from orbiter.train.demo.multi_turn.lessons import show_tasks
from orbiter.train.demo.multi_turn.tasks import MultiTurnTask, load_tasks

__all__ = ["MultiTurn", "MultiTurnTask", "load_tasks", "show_tasks"]
