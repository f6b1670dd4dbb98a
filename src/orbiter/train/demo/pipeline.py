"""The stages of the demo: capture, curate, SFT, GRPO, with an exam after each.

    requests ─ split ┬ held out ───────────────────────────────────── exam · exam · exam
                     ├ shown ── reference agent, model → traces → lessons → SFT ┐
                     │                                 └ answered wrongly ─┐    │
                     └ own ────────────────────────────────────────────────┴─ GRPO → model

No function of the held-out part occurs in the other parts. With `Plan.control`, SFT gets the
seconds that GRPO took, so that the two gains can be compared. A run that was interrupted continues
where it stopped: finished stages are read back, and a training resumes from its checkpoint.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import msgspec

from orbiter.train.demo.account import Account
from orbiter.train.demo.agent import answer_all, right_call
from orbiter.train.demo.check import score, verdict
from orbiter.train.demo.outcome import DemoExam, DemoOutcome, Question
from orbiter.train.demo.page import write_page
from orbiter.train.demo.parts import GROUPS, RequestParts, draw, further_requests, split_requests
from orbiter.train.demo.plan import DemoPlan, estimate
from orbiter.train.demo.probe import exam_seconds
from orbiter.train.demo.prompt import INSTRUCTION, render
from orbiter.train.demo.requests import ToolRequest, load_requests
from orbiter.train.demo.state import DemoState, open_state
from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.runlog import read_run
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.storage import write_file
from orbiter.train.synthesis import deduplicate, filter_by_score, split_dataset
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer

EXAM_ROWS = 100
"""Requests answered between two checks for an interruption."""


class CuratedLessons(NamedTuple):
    """Good traces: to imitate, and to validate on."""

    train: list[TrajectoryItem]
    validation: list[TrajectoryItem]


@dataclass(slots=True)
class DemoRun:
    """A run in progress: its settings, its state, and where it reports to."""

    plan: DemoPlan
    folder: Path
    account: Account
    requests: Mapping[str, ToolRequest]
    """By id."""
    state: DemoState
    trainer: SFTTrainer | VeRLTrainer | None = field(default=None, init=False)
    """The training in progress, if there is one."""
    stopping: bool = field(default=False, init=False)
    """Whether the run was interrupted."""

    @property
    def outcome(self) -> DemoOutcome:
        """The results of the finished stages."""
        return self.state.outcome

    def finish(self, stage: str) -> None:
        """Record that a stage is complete."""
        self.state.finished.append(stage)
        self.state.save(self.folder)

    def has(self, stage: str) -> bool:
        """Return whether a stage is complete, and print that it is skipped."""
        done = stage in self.state.finished
        if done:
            self.account.skipped(stage)
        return done

    def stop(self) -> bool:
        """End the training in progress after its current step, with a checkpoint.

        Returns:
            Whether a training is in progress; anything else must be cancelled.
        """
        self.stopping = True
        if self.trainer is None or not self.trainer.training:
            return False
        self.trainer.stop()
        return True

    async def train(
        self, trainer: SFTTrainer | VeRLTrainer, data: Sequence[TrajectoryItem]
    ) -> None:
        """Run a training to its end.

        Raises:
            asyncio.CancelledError: the run was interrupted, and the training has a checkpoint.
        """
        self.trainer = trainer
        try:
            await trainer.train(data)
        finally:
            self.trainer = None
        # The stage is not complete: the next call resumes it from the checkpoint.
        if trainer.stopped:
            raise asyncio.CancelledError


def open_run(plan: DemoPlan, folder: Path, account: Account) -> DemoRun:
    """Open the run in `folder`, new or interrupted, and fetch the requests.

    Raises:
        StorageError: the requests are missing and cannot be fetched, or `folder` holds something
            other than a run of this plan.
    """
    state = open_state(plan, folder)
    account.outcome = state.outcome
    requests = load_requests()[: plan.requests]
    further = load_requests(part="multiple")[: plan.further_requests]
    by_id = {request.id: request for request in [*requests, *further]}
    return DemoRun(plan, folder, account, by_id, state)


async def run_demo(run: DemoRun) -> DemoOutcome:
    """Run every stage that is not complete yet, write the page, and return the outcome.

    Raises:
        StorageError: the model is missing and cannot be fetched.
        asyncio.CancelledError: the run was interrupted; the same call continues it.
    """
    simple = [request for request in run.requests.values() if request.id.startswith("simple")]
    parts = split_requests(simple, run.plan)
    run.outcome.held_out = [_question(run.requests[str(item.task_id)]) for item in parts.held_out]
    run.outcome.counts |= {name: len(part) for name, part in parts._asdict().items()}
    await announce(run, parts)
    traces = await capture(run, parts)
    # Repeated after an interruption: it takes a moment and gives the same parts.
    lessons = curate(run, traces)
    await imitate(run, lessons, parts.held_out)
    practice = [
        *parts.own,
        *without_lesson(parts.shown, lessons),
        *further_requests(run.requests.values(), parts.held_out),
    ]
    await learn_by_reward(run, practice, parts.held_out)
    if run.plan.control:
        await imitate_further(run, lessons, parts.held_out)
    run.outcome.page = str(write_page(run.outcome, run.plan, run.folder))
    write_file(run.folder / "result.json", msgspec.json.encode(run.outcome))
    run.finish("report")
    return run.outcome


async def announce(run: DemoRun, parts: RequestParts) -> None:
    """Choose the arithmetic, measure this machine's speed, and print the minutes to expect."""
    plan = run.plan
    from orbiter.train.engine.arithmetic import choose_dtype, pick_device

    if not run.state.dtype:
        device = pick_device()
        chosen = choose_dtype(plan.dtype, device)
        run.state.dtype = chosen.dtype
        run.account.say(chosen.on(device))
    if run.state.finished or plan.model == "tiny":
        return
    policy = VeRLTrainer(VeRLConfig(model=plan.model, **_engine(run)))
    speed = await exam_seconds(policy, parts.held_out)
    run.account.expect(estimate(plan, speed), plan)


async def capture(run: DemoRun, parts: RequestParts) -> TrajectoryDataset:
    """Capture the traces of the reference agent and of the untrained model."""
    plan, account, path = run.plan, run.account, run.folder / "traces.jsonl"
    if run.has("capture"):
        return TrajectoryDataset(path=path)
    path.unlink(missing_ok=True)  # of an interrupted attempt at this stage
    with account.stage("capture", "traces of the reference agent and of the untrained model"):
        dataset = TrajectoryDataset(path=path)
        shown = [run.requests[str(item.task_id)] for item in parts.shown]
        replies = answer_all(shown, seed=plan.seed)
        _capture(run, dataset, parts.shown, replies, agent="reference")
        model = VeRLTrainer(VeRLConfig(model=plan.model, **_engine(run)))
        asked = parts.shown[: plan.own_traces]
        _capture(run, dataset, asked, await model.generate(asked), agent=plan.model)
        wrong = sum(item.reward == 0 for item in dataset)
        account.say(f"{len(dataset)} traces, {wrong} of them wrong")
        run.outcome.counts |= {"traces": len(dataset), "wrong traces": wrong}
        await examine(run, "before", model, parts.held_out)
    run.finish("capture")
    return dataset


def _capture(
    run: DemoRun,
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


def curate(run: DemoRun, traces: TrajectoryDataset) -> CuratedLessons:
    """Keep the right traces, each once, and set some aside for validation."""
    plan, account = run.plan, run.account
    with account.stage("curate", "filter by reward, deduplicate, split"):
        right = filter_by_score(traces.items[:], min_score=1.0)
        distinct = deduplicate(right, threshold=0.9)
        shares = (1 - plan.validation, plan.validation)
        parts = split_dataset(distinct, shares, seed=plan.seed, group_by=GROUPS)
        lessons = CuratedLessons(*parts)
        traces.close()
        account.say(
            f"{len(traces)} traces → {len(right)} right → {len(distinct)} distinct → "
            f"{len(lessons.train)} to imitate, {len(lessons.validation)} for validation"
        )
        run.outcome.counts |= {"right traces": len(right), "distinct traces": len(distinct)}
        run.outcome.counts |= {name: len(part) for name, part in lessons._asdict().items()}
    return lessons


def without_lesson(
    shown: Sequence[TrajectoryItem], lessons: CuratedLessons
) -> list[TrajectoryItem]:
    """Return the shown requests without a good trace, which are left to the model's attempts."""
    answered = {item.task_id for part in lessons for item in part}
    return [item for item in shown if item.task_id not in answered]


async def imitate(
    run: DemoRun, lessons: CuratedLessons, held_out: Sequence[TrajectoryItem]
) -> None:
    """Imitate the good traces; the pass with the best validation loss is kept."""
    plan = run.plan
    if run.has("sft"):
        return
    with run.account.stage("sft", f"{len(lessons.train)} traces, up to {plan.sft_epochs} passes"):
        config = _sft_config(run, lessons, model=plan.model, folder="sft", epochs=plan.sft_epochs)
        trainer = SFTTrainer(config, eval_dataset=lessons.validation)
        await run.train(trainer, lessons.train)
        _keep_curve(run, "sft validation loss", "sft", "eval/loss")
        await examine(run, "sft", _asker(run, run.folder / "sft" / "best"), held_out)
    # Hundreds of megabytes that no later stage reads.
    shutil.rmtree(run.folder / "sft" / "checkpoints", ignore_errors=True)
    run.finish("sft")


async def learn_by_reward(
    run: DemoRun, practice: Sequence[TrajectoryItem], held_out: Sequence[TrajectoryItem]
) -> None:
    """Let the model attempt requests without a good answer, and reward its right calls."""
    plan, account = run.plan, run.account
    if run.has("grpo"):
        return

    def call_score(output: str, item: TrajectoryItem) -> float:
        return score(output, run.requests[str(item.task_id)])

    def call_right(output: str, item: TrajectoryItem) -> bool:
        return verdict(output, run.requests[str(item.task_id)]).right

    with account.stage("grpo", f"the model's own calls for {len(practice)} other requests"):
        attempted = draw(practice, _choose_steps(run) * plan.batch_size, seed=plan.seed)
        config = VeRLConfig(
            algorithm=VeRLAlgorithm.GRPO,
            model=str(run.folder / "sft" / "best"),
            epochs=1,  # `draw` repeats what is attempted more than once
            group_size=plan.group_size,
            learning_rate=plan.grpo_learning_rate,
            warmup_steps=3,
            lr_schedule="linear",
            # A group that splits into right and wrong counts for more than one whose wrong calls
            # differ in an argument; dividing by the spread would make both the same.
            scale_rewards=False,
            output_dir=run.folder / "grpo",
            resume=True,
            **_engine(run),
        )
        rewards = [RewardSpec("call", 1.0, call_score), RewardSpec("right", 0.0, call_right)]
        trainer = VeRLTrainer(config, rewards)
        with run.account.timed("grpo training"):
            await run.train(trainer, attempted)
        _keep_curve(run, "grpo reward", "grpo", "reward")
        run.outcome.counts["practice"] = len(practice)
        await examine(run, "grpo", trainer, held_out)
        run.outcome.model = str(await trainer.save(run.folder / "model"))
    shutil.rmtree(run.folder / "grpo" / "checkpoints", ignore_errors=True)
    run.finish("grpo")


def _choose_steps(run: DemoRun) -> int:
    """Return the number of GRPO steps that fit into the time budget; a resume keeps it."""
    plan, state = run.plan, run.state
    if state.steps is None:
        elapsed = sum(run.outcome.seconds.get(stage, 0.0) for stage in ("capture", "sft"))
        chosen = estimate(plan, run.outcome.exams["sft"].seconds, elapsed=elapsed)
        state.steps = plan.grpo_steps if plan.model == "tiny" else chosen.steps
        state.save(run.folder)
    run.account.say(f"{state.steps} steps of at most {plan.grpo_steps}")
    return state.steps


async def imitate_further(
    run: DemoRun, lessons: CuratedLessons, held_out: Sequence[TrajectoryItem]
) -> None:
    """Give SFT the seconds that GRPO had, from the same start, as a control.

    Here too the best pass by validation loss counts, not the last.
    """
    if run.has("further sft"):
        return
    seconds = run.outcome.seconds["grpo training"]
    with run.account.stage("further sft", f"the control: {seconds:.0f} s more of SFT"):
        start = str(run.folder / "sft" / "best")
        config = _sft_config(
            run, lessons, model=start, folder="further", epochs=1000, max_seconds=seconds
        )
        trainer = SFTTrainer(config, eval_dataset=lessons.validation)
        await run.train(trainer, lessons.train)
        _keep_curve(run, "further sft validation loss", "further", "eval/loss")
        await examine(run, "further sft", _asker(run, run.folder / "further" / "best"), held_out)
    for name in ("best", "checkpoints"):
        shutil.rmtree(run.folder / "further" / name, ignore_errors=True)
    run.finish("further sft")


async def examine(
    run: DemoRun, name: str, model: ModelTrainer, held_out: Sequence[TrajectoryItem]
) -> None:
    """Let a model answer the held-out requests greedily, and judge its calls."""
    await model.policy()  # loaded before the clock starts: `estimate` counts answering alone
    began = perf_counter()
    replies: list[str] = []
    for first in range(0, len(held_out), EXAM_ROWS):
        replies += await model.generate(held_out[first : first + EXAM_ROWS])
    requests = [run.requests[str(item.task_id)] for item in held_out]
    right = [
        verdict(reply, request).right for reply, request in zip(replies, requests, strict=True)
    ]
    run.outcome.exams[name] = exam = DemoExam(name, replies, right, perf_counter() - began)
    run.account.exam(exam)


def _asker(run: DemoRun, model: Path) -> ModelTrainer:
    """Load a model for inference only."""
    return VeRLTrainer(VeRLConfig(model=str(model), **_engine(run)))


def _sft_config(
    run: DemoRun,
    lessons: CuratedLessons,
    *,
    model: str,
    folder: str,
    epochs: int,
    max_seconds: float | None = None,
) -> SFTConfig:
    """Validate after every pass; the best model is kept in the folder's `best`."""
    return SFTConfig(
        model=model,
        epochs=epochs,
        learning_rate=run.plan.sft_learning_rate,
        warmup_steps=3,
        lr_schedule="linear",
        eval_every=math.ceil(len(lessons.train) / run.plan.batch_size),
        output_dir=run.folder / folder,
        resume=True,
        max_seconds=max_seconds,
        **_engine(run),
    )


def _engine(run: DemoRun) -> dict[str, Any]:
    """Return the settings that all trainers share."""
    plan = run.plan
    return {
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "max_response_length": plan.max_response_length,
        "dtype": run.state.dtype,
        "system_prompt": INSTRUCTION,
    }


def _keep_curve(run: DemoRun, name: str, folder: str, metric: str) -> None:
    points = read_run(run.folder / folder).series(metric)
    run.outcome.curves[name] = [(float(step), value) for step, value in points]


def _question(request: ToolRequest) -> Question:
    return Question(request.id, request.text, render(request), right_call(request))
