"""`orbiter-train train`, `sft`, `offline`, `prefer` and `reward-model`: run one training.

A run is a folder: config.toml (all its settings), metrics.jsonl, samples.jsonl, checkpoints,
result.json, model, report.html. The training itself is in `verl/`, `sft/`, `offline/` and
`preference/`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from orbiter.train.cli.agent import rehearse
from orbiter.train.cli.emit import Claim, Emit, Image, emit
from orbiter.train.cli.exams import examine, gain, interval, keep_exams, kept_exam
from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.job import Job, Method, make_job, plan_lines
from orbiter.train.cli.judges import calibrate_all
from orbiter.train.cli.options import ConfigFile, DryRun, Out, OverrideWords, Resume
from orbiter.train.cli.output import JsonFlag, Output, command, duration, shown
from orbiter.train.cli.settings.config_file import RUN_CONFIG, Settings, load, write_run_config
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.contained import check_contained
from orbiter.train.engine.plan import TrainPlan
from orbiter.train.errors import StorageError
from orbiter.train.evaluation import Interval
from orbiter.train.interrupts import TwoStepInterrupt
from orbiter.train.preference import RewardModelTrainer
from orbiter.train.progress import working
from orbiter.train.report.story import Exam
from orbiter.train.runlog import read_run
from orbiter.train.sft import SFTTrainer
from orbiter.train.storage import write_file
from orbiter.train.verl import VeRLConfig, VeRLTrainer
from orbiter.train.verl.cluster.plan import ClusterPlan

RESULT = "result.json"
"""File with the result of a finished run."""

PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="USER/NAME",
        help="Upload the finished model there, as a private repository.",
    ),
]


def _command(method: Method, about: str) -> typer.Typer:
    """Return the app of one command; all commands but `train` have the same options."""
    app = typer.Typer(rich_markup_mode=None)

    @app.command(method, help=about)
    def start(
        overrides: OverrideWords = None,
        *,
        config: ConfigFile = None,
        out: Out = None,
        resume: Resume = False,
        dry_run: DryRun = False,
        push_to_hub: PushToHub = None,
        as_json: JsonFlag = False,
    ) -> None:
        settings = load(config, parse_overrides(overrides or ()))
        asked = CommandOptions(out, resume, dry_run, push_to_hub)
        raise typer.Exit(run(method, settings, asked, Output(as_json=as_json)))

    return app


train_app = typer.Typer(rich_markup_mode=None)
sft_app = _command(
    "sft",
    """Improve a model by imitating good answers.

    The settings are those of [sft] and [data].
    """,
)
offline_app = _command(
    "offline",
    """Improve a model by logged episodes and their rewards, without running anything.

    The settings are those of [offline] and [data]. The data must have been captured with token
    ids.
    """,
)
prefer_app = _command(
    "prefer",
    """Improve a model by preferences, with DPO, IPO, KTO, ORPO or SimPO.

    The settings are those of [prefer] and [data]. The data hold several answers to one prompt with
    rewards, several episodes of one task, or the pairs of TRL's and OpenAI's preference files.
    """,
)
reward_model_app = _command(
    "reward-model",
    """Train a reward model on preferences, to be used as a reward.

    The settings are those of [reward-model] and [data]; the data are those of `prefer`. In [reward]
    of another config, name = { model = "FOLDER/model" } uses the result.
    """,
)


@train_app.command("train")
def train(
    overrides: OverrideWords = None,
    *,
    config: ConfigFile = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    push_to_hub: PushToHub = None,
    emit_for: Emit = None,
    image: Image = "",
    claim: Claim = "",
    as_json: JsonFlag = False,
) -> None:
    """Improve a model by reward, with GRPO or PPO.

    The settings are those of [train], [reward] and [data]. With [agent] the model learns inside
    your agent or environment; --dry-run then plays two episodes. With train.algorithm=distill it
    learns from a larger model (train.teacher), and rewards may be left out.
    """
    settings = load(config, parse_overrides(overrides or ()))
    asked, output = CommandOptions(out, resume, dry_run, push_to_hub), Output(as_json=as_json)
    if emit_for is not None:
        job = make_job("train", settings, out=out)
        raise typer.Exit(emit(job, emit_for, output, image=image, claim=claim))
    raise typer.Exit(run("train", settings, asked, output))


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """The command line's options besides the settings."""

    out: Path | None = None
    resume: bool = False
    dry_run: bool = False
    push_to_hub: str | None = None


def run(method: Method, settings: Settings, asked: CommandOptions, output: Output) -> ExitCode:
    """Check, plan and train, then print the result; return the exit code."""
    job = make_job(method, settings, out=asked.out, resume=asked.resume)
    plan = asyncio.run(_plan(job))
    limit = job.trainer.config.max_seconds
    limits = [] if limit is None else [("limit", f"stops after {duration(limit)} (max_seconds)")]
    lines = plan_lines(job, plan)
    output.table(("what", "how much"), [*limits, *lines, ("folder", str(job.folder))])
    if asked.dry_run:
        cost = asyncio.run(_try(job, output))
        output.say("all checks passed; without --dry-run this starts the run")
        output.result(
            {
                "plan": asdict(plan),
                **({} if cost is None else {"step": cost}),
                "folder": str(job.folder),
                "settings": job.run_config(),
            }
        )
        return ExitCode.OK
    resumed = job.trainer.config.resume
    if not resumed:
        _require_new(job.folder)
        write_run_config(job.folder, job.run_config())
    for text in asyncio.run(calibrate_all(job.scorers, settings, job.folder)):
        output.say(text)
    return _carry_out(job, plan.steps, asked, output)


async def _plan(job: Job) -> TrainPlan | ClusterPlan:
    """Return the plan of a run; with an agent it has no tokens, no memory and no time."""
    trainer = job.trainer
    if job.agent is None or getattr(trainer.config, "backend", "local") == "verl":
        return await trainer.plan()
    await trainer.validate()
    config, count = trainer.config, len(job.items)
    steps = config.epochs * math.ceil(count / config.batch_size)
    assert isinstance(config, VeRLConfig)
    from orbiter.train.engine.models.outline import make_outline
    from orbiter.train.engine.thread import work

    outline = await work(make_outline, config, reference=False, value_head=False)
    return TrainPlan(
        method=trainer.method,
        model=config.model,
        items=count,
        held_out=len(job.held_out or ()),
        steps=steps,
        updates=steps * config.updates_per_step,
        computes=None if outline is None else outline.computes,
    )


def _require_new(folder: Path) -> None:
    """Refuse a folder that contains a run, before anything in it is changed.

    Raises:
        StorageError: it contains a run.
    """
    if (folder / "metrics.jsonl").exists():
        raise StorageError(
            f"{folder} holds a run already; resume it with `{command('runs', 'resume', folder)}`, "
            "or choose another folder with --out"
        )


async def _try(job: Job, output: Output) -> dict[str, Any] | None:
    """Apply every reward to the first item's action, or play two episodes of an agent.

    Returns:
        The cost of a step, if it was measured.

    Raises:
        CallbackError: a reward failed, or returned a value that is not a finite number, or the
            agent failed.
    """
    if job.agent is not None:
        assert isinstance(job.trainer, VeRLTrainer), "only this trainer has agents"
        return await rehearse(job.trainer, job.items, output)
    if not job.rewards:
        return None
    from orbiter.train.verl.reward import score

    first = job.items[0]
    functions = [reward for reward in job.rewards if reward.judge is None]  # a judge costs money
    scores = await score([first.action], [first], functions)
    for name, answers in scores.by_name.items():
        output.say(f"reward {name!r} gives {shown(answers[0])} to the first item's own action")
    return None


def _carry_out(job: Job, steps: int, asked: CommandOptions, output: Output) -> ExitCode:
    """Train with two-step Ctrl-C handling, and write the results into the run's folder."""
    if not job.trainer.config.progress:
        logging.getLogger("orbiter.train").setLevel(logging.INFO)
    course = MeasuredTraining(job, output)
    began = perf_counter()
    signals = TwoStepInterrupt(
        course.stop,
        first="finishing this step, then saving (once more stops at once)",
        second=lambda: _farewell(job),
    )
    with signals:
        try:
            result = asyncio.run(course.go())
        except asyncio.CancelledError:
            result = None
    if result is None:
        return _stopped(job, signals.received or 2, output)
    done = _steps_done(job.folder)
    result |= {
        "method": job.method,
        "seconds": perf_counter() - began,
        "steps": done,
        "planned_steps": steps,
        "finished": done >= steps,
    }
    return _finish(job, result, asked, output)


def _steps_done(folder: Path) -> int:
    """Return the last step recorded by the run."""
    metrics = read_run(folder).metrics
    return int(metrics[-1]["step"]) if metrics else 0


class MeasuredTraining:
    """The run itself: measure, train, measure again, save."""

    def __init__(self, job: Job, output: Output) -> None:
        self._job, self._output = job, output
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._training = False
        self._asked = False
        """Whether a signal asked the run to stop; `max_seconds` is a normal end."""

    def stop(self) -> None:
        """End after the current step; before and after the training, at once."""
        self._asked = True
        if self._training:
            self._job.trainer.stop()
        elif self._loop is not None and self._task is not None:
            # A signal handler runs between any two instructions, perhaps inside the loop.
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def go(self) -> dict[str, Any] | None:
        """Return the results; None if the run was stopped before its end."""
        job, trainer = self._job, self._job.trainer
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        before = await self._before()
        self._training = True
        metrics = await trainer.train()
        self._training = False
        # `max_seconds` ends a run early too, but that run is complete and is measured.
        if trainer.stopped and self._asked:
            return None
        result: dict[str, Any] = {"training": metrics.measured()}
        if before is not None and job.held_out is not None:
            after = await examine(trainer, "after", job.held_out, job.rewards)
            keep_exams(job.folder, job.held_out, [before, after])
            result["before"] = interval(before)._asdict()
            result["after"] = interval(after)._asdict()
            result["gain"] = gain(before, after)._asdict()
        if isinstance(trainer, RewardModelTrainer) and job.held_out is not None:
            quality = await trainer.quality(job.held_out)
            result["quality"] = quality.measured()
            self._output.say(f"held out  {quality}")
        learns_without_rewards = isinstance(trainer, SFTTrainer) or (
            isinstance(trainer, VeRLTrainer) and job.agent is None and not job.rewards
        )
        if learns_without_rewards and before is None and job.held_out is not None:
            assert isinstance(trainer, SFTTrainer | VeRLTrainer)
            result["held_out"] = (await trainer.evaluate(job.held_out)).measured()
        result["model"] = str(await trainer.save(job.folder / "model"))
        return result

    async def _before(self) -> Exam | None:
        """Examine the untrained model, or read the stored exam of an earlier process."""
        job = self._job
        if job.held_out is None or not (job.rewards or job.agent):
            return None
        known = kept_exam(job.folder, "before") if job.trainer.config.resume else None
        if known is not None:
            return known
        exam = await examine(job.trainer, "before", job.held_out, job.rewards)
        keep_exams(job.folder, job.held_out, [exam])
        return exam


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Store the results next to the run's metrics."""
    write_file(folder / RESULT, json.dumps(result, indent=2, default=str).encode() + b"\n")


def _has_checkpoint(job: Job) -> bool:
    # verl's are in the folder of its job.
    here, there = job.folder / "checkpoints", job.folder / "verl" / "checkpoints"
    return any(here.glob("step-*")) or any(there.glob("global_step_*"))


def _farewell(job: Job) -> str:
    """Return what the second signal prints: where the run can be continued from."""
    if _has_checkpoint(job):
        return f"stopped; continue from the last checkpoint with: {job.resume_command}"
    return f"stopped before the first checkpoint; start over with: {job.resume_command}"


def _stopped(job: Job, number: int, output: Output) -> ExitCode:
    code = ExitCode(128 + number)
    saved = _has_checkpoint(job)
    output.say(
        f"stopped; continue with: {job.resume_command}"
        if saved
        else "stopped before the first step; nothing was trained"
    )
    output.result(
        {
            "stopped": True,
            "folder": str(job.folder),
            "resume": job.resume_command if saved else None,
        }
    )
    return code


def _finish(job: Job, result: dict[str, Any], asked: CommandOptions, output: Output) -> ExitCode:
    """Print the outcome, write the report page, and upload the model if requested."""
    from orbiter.train.report import write_report

    folder = job.folder
    write_result(folder, result)
    _print_result(result, output)
    output.say(f"model     {result['model']}")
    with working(f"drawing {folder}"):
        page = write_report(folder)
    output.say(f"report    {page}")
    if asked.push_to_hub is not None:
        from orbiter.train.engine.models.export import push_to_hub

        result["hub"] = push_to_hub(folder / "model", asked.push_to_hub)
        output.say(f"uploaded  {result['hub']}")
    output.say(_next_step(job, str(result["model"])))
    output.result(result | {"folder": str(folder), "report": str(page)})
    return ExitCode.OK


def _next_step(job: Job, model: str) -> str:
    """Return how to use the finished model."""
    if job.method == "reward-model":
        return f'use it    in [reward]: name = {{ model = "{model}" }}'
    words = ["generate", "--model", model, "your prompt"]
    file = job.settings.file
    if job.agent is not None:
        words = ["eval", "--run", str(job.folder)]
    elif file is not None and load(file, parse_overrides([])).section("agent"):
        # The other methods run no agent, but the model is for the agent of this config, whose
        # section is not among the settings that their run's folder keeps.
        words = ["eval", "--config", str(file), "--model", model]
    return f"try it    {command(*words)}"


def _print_result(result: dict[str, Any], output: Output) -> None:
    """Print how good the model was before and after, on held-out items if there are any."""
    steps, planned = result["steps"], result["planned_steps"]
    output.say(
        f"trained   {steps} steps in {duration(result['seconds'])}"
        if result["finished"]
        else f"trained   {steps} of {planned} steps, then max_seconds was reached"
    )
    if "gain" in result:
        before, after, gain = (Interval(**result[name]) for name in ("before", "after", "gain"))
        output.say(f"held out  reward {before} before")
        output.say(
            f"          reward {after} after: {gain.mean:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]"
        )
        return
    name = "reward" if result["method"] == "train" else "loss"
    if name == "reward" and name not in result["training"]:
        name = "divergence"  # of a run by a teacher alone
    output.say(f"training  {name} {shown(result['training'].get(name))} over the last epoch")
    if "held_out" in result:
        output.say(f"held out  {name} {shown(result['held_out'].get(name))}")


def resume_run(folder: Path, overrides: list[str], output: Output) -> ExitCode:
    """Continue the run in a folder with its stored settings.

    Raises:
        StorageError: the folder contains no run.
    """
    file = folder / RUN_CONFIG
    check_contained(folder, to_write=True)
    if not file.is_file():
        raise StorageError(f"{folder} holds no run: {RUN_CONFIG} is missing")
    settings = load(file, parse_overrides(overrides))
    methods: tuple[Method, ...] = ("train", "offline", "prefer", "reward-model")
    method: Method = next((name for name in methods if name in settings.values), "sft")
    return run(method, settings, CommandOptions(folder, resume=True), output)
