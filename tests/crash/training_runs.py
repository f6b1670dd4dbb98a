"""Runs of training to be killed: a process that has torch in memory and forks one child a run.

A line of JSON on standard input asks for a run, a line on standard output tells how it ended.
Importing torch takes seconds, forking takes milliseconds: so a hundred processes can die in a
minute. The child kills itself, with the SIGKILL that a machine would send, at the n-th moment of a
kind; nothing of the package is replaced, a moment is only counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from orbiter.train.agents import current_episode
from orbiter.train.engine import checkpoint, prompt  # noqa: F401 - before the fork
from orbiter.train.engine.models import export  # noqa: F401 - before the fork
from orbiter.train.engine.models import load as models  # noqa: F401 - before the fork
from orbiter.train.engine.session import Session
from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.preference import PreferenceConfig, PreferenceTrainer
from orbiter.train.preference import local as preferences  # noqa: F401 - before the fork
from orbiter.train.preference.encoding import EncodedAttempt
from orbiter.train.preference.reference import ReferenceLogprobs
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer, episodes, local  # noqa: F401 - as above
from tests.crash.journals import finished

URL = "https://api.example.invalid/v1/chat/completions"
PROMPTS = ["Say something.", "Name a colour.", "Sing.", "Count.", "Rhyme."]
ANSWERS = [
    TrajectoryItem(task, answer, reward)
    for task in PROMPTS
    for answer, reward in ((f"Yes: {task}", 1.0), ("No.", 0.0))
]


class Countdown:
    """Dies at the n-th call."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, number: int) -> Countdown:
    """Set the moment of death; "reward" is left to the reward function."""
    count = Countdown(number)
    take, save, add = Session.take, Session.save, ReferenceLogprobs.add

    def counted_take(self: Session, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        if moment == "before update":
            count()
        take(self, *args, **kwargs)
        if moment == "after update":
            count()

    def counted_save(self: Session) -> None:
        watching.append(True)
        save(self)
        watching.clear()

    def counted_add(
        self: ReferenceLogprobs, attempts: Sequence[EncodedAttempt], numbers: Sequence[float]
    ) -> None:
        add(self, attempts, numbers)
        if moment == "after the reference":
            count()

    watching: list[bool] = []

    def look(event: str, _: tuple[object, ...]) -> None:
        if watching and event in FILE_EVENTS:
            count()

    Session.take = counted_take  # type: ignore[method-assign] # to count, see above
    Session.save = counted_save  # type: ignore[method-assign]
    ReferenceLogprobs.add = counted_add  # type: ignore[method-assign]
    if moment == "file operation":
        sys.addaudithook(look)
    return count


FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def run(order: dict[str, Any]) -> dict[str, Any]:
    moment, number = order["kill"] or ("never", 0)
    count = arm(moment, number)

    def spread(output: str) -> float:
        if moment == "reward":
            count()
        return (sum(output.encode("utf-8", "replace")) % 97) / 97

    folder = Path(str(order["config"]["output_dir"]))
    trainer: ModelTrainer
    if order["preference"]:
        trainer = PreferenceTrainer(PreferenceConfig(**order["config"]), dataset=ANSWERS)
    else:
        fatal = number if moment == "between turns" else 0
        agent = two_turns(folder, fatal) if order["agent"] else None
        config = VeRLConfig(**order["config"])
        rewards = [RewardSpec("spread", 1.0, spread)]
        trainer = VeRLTrainer(config, rewards, dataset=PROMPTS, agent=agent)
    weights = asyncio.run(trained(trainer))
    return {
        "weights": weights,
        "metrics": hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest(),
        "samples": hashlib.sha256((folder / "samples.jsonl").read_bytes()).hexdigest(),
        "file_operations": -count.left if moment == "file operation" else 0,
    }


def two_turns(folder: Path, fatal: int) -> Callable[[str], Awaitable[str]]:
    """Return an agent that asks twice, and notes what it plays in a file beside the run.

    With `fatal`, the last attempt at a task dies between its turns, once so many others are over.
    """

    async def agent(task: str) -> str:
        attempt = current_episode().attempt
        with folder.with_suffix(".played").open("a", encoding="utf-8") as played:
            played.write(json.dumps([task, attempt]) + "\n")
        messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
        async with httpx.AsyncClient() as client:
            for turn in range(2):
                if fatal and turn == 1 and attempt == 3:
                    while len(finished(folder)) < fatal:  # noqa: ASYNC110 - a file has no event
                        await asyncio.sleep(0.005)
                    os.kill(os.getpid(), signal.SIGKILL)
                answer = await client.post(URL, json={"model": "m", "messages": messages})
                messages.append(answer.raise_for_status().json()["choices"][0]["message"])
                messages.append({"role": "user", "content": "And?"})
        return str(messages[-2]["content"])

    return agent


async def trained(trainer: ModelTrainer) -> str:
    await trainer.train()
    digest = hashlib.sha256()
    for name, parameter in (await trainer.policy()).named_trainable().items():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def child(order: dict[str, Any], answer: int) -> None:
    torch.set_num_threads(1)
    os.write(answer, json.dumps(run(order)).encode())


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                child(json.loads(line), writing)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(process, 0)
        ended = {"code": os.waitstatus_to_exitcode(status), "result": said and json.loads(said)}
        sys.stdout.write(json.dumps(ended) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
