"""The demo's policy behind SFT and the requests it learns from by GRPO: its workload, made once.

Two minutes of SFT on the demo's right traces, kept in build/bench-demo for the next benchmark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from orbiter.train.demo.agent import answer_all
from orbiter.train.demo.check import score, verdict
from orbiter.train.demo.parts import split_requests
from orbiter.train.demo.plan import DemoPlan
from orbiter.train.demo.prompt import INSTRUCTION
from orbiter.train.demo.requests import ToolRequest, load_requests
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.prompt import render_text
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.trajectory import TrajectoryItem

FOLDER = Path(__file__).parent.parent / "build" / "bench-demo"
PLAN = DemoPlan()


def demo_policy() -> str:
    """Return the folder of the model that GRPO begins with, trained on first use."""
    if not (FOLDER / "config.json").exists():
        asyncio.run(_imitate())
    return str(FOLDER)


def demo_prompts() -> list[str]:
    """Return the requests of the demo's GRPO as the chat template writes them."""
    return list(_asked())


def demo_reward() -> Callable[[str, str], float]:
    """Return the demo's reward of an answer, given the prompt and the answer."""
    asked = _asked()
    return lambda prompt, answer: score(answer, asked[prompt])


def _asked() -> dict[str, ToolRequest]:
    """Return the requests by their prompts."""
    tokenizer = load_model(demo_policy(), device="cpu").tokenizer
    requests = load_requests()
    by_id = {request.id: request for request in requests}
    return {
        render_text(tokenizer, item, system=INSTRUCTION): by_id[str(item.task_id)]
        for item in split_requests(requests, PLAN).own
    }


async def _imitate() -> None:
    config = SFTConfig(
        model=PLAN.model,
        epochs=PLAN.sft_epochs,
        learning_rate=PLAN.sft_learning_rate,
        warmup_steps=3,
        lr_schedule="linear",
        batch_size=PLAN.batch_size,
        seed=PLAN.seed,
        dtype="bfloat16",
        system_prompt=INSTRUCTION,
    )
    trainer = SFTTrainer(config, dataset=_right_traces())
    await trainer.train()
    await trainer.save(FOLDER)


def _right_traces() -> list[TrajectoryItem]:
    """Let the reference agent answer the demo's requests, and keep what is right."""
    requests = load_requests()
    by_id = {request.id: request for request in requests}
    shown = split_requests(requests, PLAN).shown
    asked = [by_id[str(item.task_id)] for item in shown]
    return [
        TrajectoryItem(item.state, reply, 1.0, task_id=item.task_id)
        for item, reply, request in zip(
            shown, answer_all(asked, seed=PLAN.seed), asked, strict=True
        )
        if verdict(reply, request).right
    ]
