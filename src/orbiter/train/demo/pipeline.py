"""The whole way: capture, curate, imitate, learn by reward, and examine after every step.

    requests ─ split ┬ held out ───────────────────────────────────── exam · exam · exam
                     ├ shown ── reference agent, model → traces → lessons → SFT ┐
                     │                                 └ answered wrongly ─┐    │
                     └ own ────────────────────────────────────────────────┴─ GRPO → model

No function of the held-out part occurs in the others. With `Plan.control`, what GRPO gains is
compared with what as many seconds of further SFT gain.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import msgspec

from orbiter.train.demo.account import Account
from orbiter.train.demo.agent import answer_all, right_call
from orbiter.train.demo.check import score, verdict
from orbiter.train.demo.outcome import Exam, Outcome, Question
from orbiter.train.demo.page import write_page
from orbiter.train.demo.plan import Plan
from orbiter.train.demo.prompt import INSTRUCTION, render
from orbiter.train.demo.requests import ToolRequest, load_requests
from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.errors import StorageError
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.storage import atomic_write
from orbiter.train.synthesis import deduplicate, filter_by_score, split_dataset
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer


class Parts(NamedTuple):
    """The requests by what they are for; no function is in two parts."""

    held_out: list[TrajectoryItem]
    shown: list[TrajectoryItem]
    own: list[TrajectoryItem]


FUNCTION = "function"
"""The metadata entry that names the function a request is for."""
GROUPS = ("task_id", FUNCTION)
"""What keeps traces together in a split."""


class Lessons(NamedTuple):
    """Good traces: to imitate, and to tell when to stop."""

    train: list[TrajectoryItem]
    validation: list[TrajectoryItem]


@dataclass(frozen=True, slots=True)
class Run:
    """What every stage needs."""

    plan: Plan
    folder: Path
    account: Account
    requests: Mapping[str, ToolRequest]
    """By id."""

    @property
    def outcome(self) -> Outcome:
        """What has been found so far."""
        return self.account.outcome


async def run_demo(plan: Plan, folder: Path, account: Account) -> Outcome:
    """Run every stage, write the page, and return what was found.

    Raises:
        StorageError: the requests or the model are not at hand and cannot be fetched, or `folder`
            holds something already.
    """
    _require_empty(folder)
    requests = load_requests()[: plan.requests]
    run = Run(plan, folder, account, {request.id: request for request in requests})
    parts = split_requests(requests, plan)
    run.outcome.held_out = [_question(run.requests[str(item.task_id)]) for item in parts.held_out]
    run.outcome.counts |= {name: len(part) for name, part in parts._asdict().items()}
    traces = await capture(run, parts)
    lessons = curate(run, traces)
    await imitate(run, lessons, parts.held_out)
    practice = [*parts.own, *without_lesson(parts.shown, lessons)]
    seconds = await learn_by_reward(run, practice, parts.held_out)
    if plan.control:
        await imitate_further(run, lessons, parts.held_out, seconds=seconds)
    run.outcome.page = str(write_page(run.outcome, plan, folder))
    with atomic_write(folder / "result.json") as file:
        file.write(msgspec.json.encode(run.outcome))
    return run.outcome


def _require_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} is not empty: a run of the demo needs a folder of its own")


def split_requests(requests: Sequence[ToolRequest], plan: Plan) -> Parts:
    """Share the requests out; those of one function stay together."""
    items = [
        TrajectoryItem(
            render(request), "", None, {FUNCTION: request.function.name}, task_id=request.id
        )
        for request in requests
    ]
    return Parts(*split_dataset(items, plan.shares, seed=plan.seed, group_by=GROUPS))


async def capture(run: Run, parts: Parts) -> TrajectoryDataset:
    """Capture the traces of the reference agent, and of the model as it comes."""
    plan, account = run.plan, run.account
    with account.stage("capture", "traces of the reference agent and of the untrained model"):
        dataset = TrajectoryDataset(path=run.folder / "traces.jsonl")
        shown = [run.requests[str(item.task_id)] for item in parts.shown]
        replies = answer_all(shown, seed=plan.seed)
        _capture(run, dataset, parts.shown, replies, agent="reference")
        model = VeRLTrainer(VeRLConfig(model=plan.model, **_engine(plan)))
        asked = parts.shown[: plan.own_traces]
        _capture(run, dataset, asked, await model.generate(asked), agent=plan.model)
        wrong = sum(item.reward == 0 for item in dataset)
        account.say(f"{len(dataset)} traces, {wrong} of them wrong")
        run.outcome.counts |= {"traces": len(dataset), "wrong traces": wrong}
        await examine(run, "before", model, parts.held_out)
    return dataset


def _capture(
    run: Run,
    dataset: TrajectoryDataset,
    items: Sequence[TrajectoryItem],
    replies: Sequence[str],
    *,
    agent: str,
) -> None:
    for item, reply in zip(items, replies, strict=True):
        right = verdict(reply, run.requests[str(item.task_id)]).right
        dataset.capture(
            TrajectoryItem(
                item.state,
                reply,
                float(right),
                item.metadata,
                task_id=item.task_id,
                agent=agent,
            )
        )


def curate(run: Run, traces: TrajectoryDataset) -> Lessons:
    """Keep what is right, once each, and set validation traces aside."""
    plan, account = run.plan, run.account
    with account.stage("curate", "filter by reward, deduplicate, split"):
        right = filter_by_score(traces.items[:], min_score=1.0)
        distinct = deduplicate(right, threshold=0.9)
        shares = (1 - plan.validation, plan.validation)
        parts = split_dataset(distinct, shares, seed=plan.seed, group_by=GROUPS)
        lessons = Lessons(*parts)
        traces.close()
        account.say(
            f"{len(traces)} traces → {len(right)} right → {len(distinct)} distinct → "
            f"{len(lessons.train)} to imitate, {len(lessons.validation)} for validation"
        )
        run.outcome.counts |= {"right traces": len(right), "distinct traces": len(distinct)}
        run.outcome.counts |= {name: len(part) for name, part in lessons._asdict().items()}
    return lessons


def without_lesson(shown: Sequence[TrajectoryItem], lessons: Lessons) -> list[TrajectoryItem]:
    """Return the shown requests for which there is no good trace: left to the model's own tries."""
    answered = {item.task_id for part in lessons for item in part}
    return [item for item in shown if item.task_id not in answered]


async def imitate(run: Run, lessons: Lessons, held_out: Sequence[TrajectoryItem]) -> None:
    """Imitate the good traces until validation stops getting better; the best epoch is kept."""
    plan = run.plan
    with run.account.stage("sft", f"{len(lessons.train)} traces, up to {plan.sft_epochs} passes"):
        config = _sft_config(run, lessons, model=plan.model, folder="sft", epochs=plan.sft_epochs)
        trainer = SFTTrainer(config, dataset=lessons.train, eval_dataset=lessons.validation)
        await trainer.train()
        _keep_curve(run, "sft validation loss", trainer, "eval/loss")
        await examine(run, "sft", _asker(run, run.folder / "sft" / "best"), held_out)


async def learn_by_reward(
    run: Run, practice: Sequence[TrajectoryItem], held_out: Sequence[TrajectoryItem]
) -> float:
    """Let the model try calls for requests without a good answer, and reward the right ones.

    Returns:
        Wall seconds of the training alone.
    """
    plan, account = run.plan, run.account

    def call_score(output: str, item: TrajectoryItem) -> float:
        return score(output, run.requests[str(item.task_id)])

    def call_right(output: str, item: TrajectoryItem) -> bool:
        return verdict(output, run.requests[str(item.task_id)]).right

    with account.stage("grpo", f"the model's own calls for {len(practice)} other requests"):
        config = VeRLConfig(
            algorithm=VeRLAlgorithm.GRPO,
            model=str(run.folder / "sft" / "best"),
            epochs=plan.grpo_epochs,
            group_size=plan.group_size,
            learning_rate=plan.grpo_learning_rate,
            warmup_steps=3,
            lr_schedule="linear",
            # A group that splits into right and wrong counts for more than one whose wrong calls
            # differ in an argument; dividing by the spread would make both the same.
            scale_rewards=False,
            output_dir=run.folder / "grpo",
            **_engine(plan),
        )
        rewards = [RewardSpec("call", 1.0, call_score), RewardSpec("right", 0.0, call_right)]
        trainer = VeRLTrainer(config, rewards)
        began = perf_counter()
        await trainer.train(practice)
        seconds = perf_counter() - began
        _keep_curve(run, "grpo reward", trainer, "reward")
        run.outcome.counts["practice"] = len(practice)
        await examine(run, "grpo", trainer, held_out)
        run.outcome.model = str(await trainer.save(run.folder / "model"))
    return seconds


async def imitate_further(
    run: Run, lessons: Lessons, held_out: Sequence[TrajectoryItem], *, seconds: float
) -> None:
    """Give SFT the seconds that GRPO had, from the same start: what would they have brought?

    Here too the best pass by validation counts, not the last.
    """
    with run.account.stage("further sft", f"the control: {seconds:.0f} s more of SFT"):
        start = str(run.folder / "sft" / "best")
        config = _sft_config(
            run, lessons, model=start, folder="further", epochs=1000, max_seconds=seconds
        )
        trainer = SFTTrainer(config, dataset=lessons.train, eval_dataset=lessons.validation)
        await trainer.train()
        _keep_curve(run, "further sft validation loss", trainer, "eval/loss")
        await examine(run, "further sft", _asker(run, run.folder / "further" / "best"), held_out)
    shutil.rmtree(run.folder / "further" / "best", ignore_errors=True)


async def examine(
    run: Run, name: str, model: ModelTrainer, held_out: Sequence[TrajectoryItem]
) -> None:
    """Let a model answer the held-out requests greedily, and judge its calls."""
    began = perf_counter()
    replies = await model.generate(held_out)
    requests = [run.requests[str(item.task_id)] for item in held_out]
    right = [
        verdict(reply, request).right for reply, request in zip(replies, requests, strict=True)
    ]
    run.outcome.exams[name] = exam = Exam(name, replies, right, perf_counter() - began)
    run.account.exam(exam)


def _asker(run: Run, model: Path) -> ModelTrainer:
    """Load a model only to ask it."""
    return VeRLTrainer(VeRLConfig(model=str(model), **_engine(run.plan)))


def _sft_config(
    run: Run,
    lessons: Lessons,
    *,
    model: str,
    folder: str,
    epochs: int,
    max_seconds: float | None = None,
) -> SFTConfig:
    """Validate after every pass; the best stays in the folder's `best`."""
    return SFTConfig(
        model=model,
        epochs=epochs,
        learning_rate=run.plan.sft_learning_rate,
        warmup_steps=3,
        lr_schedule="linear",
        eval_every=math.ceil(len(lessons.train) / run.plan.batch_size),
        output_dir=run.folder / folder,
        max_seconds=max_seconds,
        **_engine(run.plan),
    )


def _engine(plan: Plan) -> dict[str, Any]:
    """Return the settings that all trainers share."""
    return {
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "max_response_length": plan.max_response_length,
        "dtype": "bfloat16",
        "system_prompt": INSTRUCTION,
    }


def _keep_curve(run: Run, name: str, trainer: ModelTrainer, metric: str) -> None:
    points = [(row["step"], row[metric]) for row in trainer.history if metric in row]
    run.outcome.curves[name] = points


def _question(request: ToolRequest) -> Question:
    return Question(request.id, request.text, render(request), right_call(request))
