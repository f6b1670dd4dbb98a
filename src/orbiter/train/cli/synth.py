"""`orbiter-train synth`: generate data from templates, a language model, or your own code."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import typer

from orbiter.train.cli.code import load_object
from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.options import (
    ConfigFile,
    OverrideWords,
    check_target,
    read_items,
    write_items,
)
from orbiter.train.cli.output import JsonFlag, Output, command
from orbiter.train.cli.settings.config_file import Settings, load
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.errors import CallbackError, ConfigError, DataError, boundary, did_you_mean
from orbiter.train.llm import ChatModel
from orbiter.train.synthesis import (
    DataSynthesiser,
    Judge,
    SynthesisConfig,
    SynthesisPipeline,
    SynthesisResult,
    TemplateSynthesiser,
)

synth_app = typer.Typer(rich_markup_mode=None)

TEACHERS = {
    "self-instruct": "SelfInstruct",
    "evolve": "Evolve",
    "back-translate": "BackTranslate",
    "respond": "Respond",
}
"""The allowed values of `teacher`, each a step that asks the model of [llm]."""


@synth_app.command()
def synth(
    overrides: OverrideWords = None, *, config: ConfigFile = None, as_json: JsonFlag = False
) -> None:
    """Generate data from templates, your own code or a language model.

    The settings are in [synth]: templates with variables, teacher = ["self-instruct", "respond"]
    with the model of [llm], or step = "file.py:make" for your own DataSynthesiser. With judge = "a
    rubric" the same model scores each item, and min_score drops the bad ones. A stopped run
    continues where it was, and a finished one can be prolonged with a greater target_size. The
    answers so far are in the folder OUT.run.
    """
    settings = load(config, parse_overrides(overrides or ()))
    output = Output(as_json=as_json)
    own = settings.own("synth")
    if not own.get("out"):
        raise ConfigError('there is nowhere to write to: set out = "more.jsonl" under [synth]')
    out = Path(str(own["out"]))
    # Before anything is asked for: answers that cannot be written would be paid for all the same.
    check_target(out)
    again = _resume_command(overrides or (), config)
    result, error = asyncio.run(_synthesise(settings, out))
    # Also after an error: what was accepted so far is good.
    written = write_items(result.items, out) if result.items else 0
    _print_result(result, out, output)
    if error is not None:
        output.say(f"every answer so far is kept. Continue with: {again}")
        if isinstance(error, CallbackError):
            output.say("To leave out the items that fail, add: synth.on_error=drop")
        raise error
    if result.stop_reason in ("cancelled", "failures", "budget"):
        output.say(f"every answer so far is kept. Continue with: {again}")
    output.result(
        {
            "out": str(out),
            "written": written,
            "stop_reason": result.stop_reason,
            "stop_cause": result.stop_cause,
            "made": result.generated_count,
            "rejected": result.rejected,
            "failures": list(result.failures),
            "cost": result.cost,
        }
    )
    raise typer.Exit(_exit_code(result))


def _resume_command(overrides: Sequence[str], config: Path | None) -> str:
    words = ["synth", *(["-c", str(config)] if config is not None else []), *overrides]
    return command(*words)


def _exit_code(result: SynthesisResult) -> ExitCode:
    """Return 0 only if the target was reached, or nothing but the data set a limit to it."""
    if result.stop_reason == "cancelled":
        return ExitCode.INTERRUPTED
    if result.stop_reason == "failures":
        return ExitCode.CALLBACK
    if result.stop_reason == "target":
        return ExitCode.OK
    # Ended for another reason, but with failures: scripts should notice.
    if result.failures:
        return ExitCode.CALLBACK
    return ExitCode.OK if result.items else ExitCode.DATA


async def _synthesise(
    settings: Settings, out: Path
) -> tuple[SynthesisResult, CallbackError | DataError | None]:
    """Return the result, and the error that ended the run."""
    own = settings.own("synth")
    seeds = read_items(str(own["seeds"])) if own.get("seeds") else []
    async with AsyncExitStack() as until:
        model = None
        if own.get("teacher") or own.get("judge"):
            from orbiter.train.cli.chat import chat_model

            model = await chat_model(settings, until)
        pipeline = SynthesisPipeline(
            settings.build("synth", SynthesisConfig),
            scorer=Judge(model, str(own["judge"])) if model and own.get("judge") else None,
            run_dir=out.with_name(f"{out.name}.run"),
        )
        for step in _steps(settings, model):
            pipeline.add_step(step)
        try:
            return await pipeline.run(seeds), None
        except (CallbackError, DataError) as error:
            if pipeline.result is None:  # it ended before it began
                raise
            return pipeline.result, error


def _steps(settings: Settings, model: ChatModel | None) -> list[DataSynthesiser]:
    own: dict[str, Any] = settings.own("synth")
    steps: list[DataSynthesiser] = []
    if own.get("templates"):
        steps.append(TemplateSynthesiser(own["templates"], own.get("variables") or {}))
    if own.get("step"):
        make = load_object(str(own["step"]), what="step")
        with boundary(f"step {own['step']!r}"):
            steps.append(make() if callable(make) else make)
    if model is not None:
        from orbiter.train.synthesis.llm import synthesisers as llm

        for name in own.get("teacher") or ():
            if name not in TEACHERS:
                where = settings.where("synth", "teacher")
                known = ", ".join(TEACHERS)
                hint = did_you_mean(str(name), TEACHERS)
                raise ConfigError(f"{where}teacher must list some of {known}, got {name!r}{hint}")
            steps.append(getattr(llm, TEACHERS[name])(model))
    if not steps:
        raise ConfigError("[synth] has nothing to make data with: set templates, teacher or step")
    return steps


def _print_result(result: SynthesisResult, out: Path, output: Output) -> None:
    rejected = ", ".join(f"{count} {reason}" for reason, count in result.rejected.items())
    where = f"in {out}" if result.items else f"(nothing is written to {out})"
    output.say(
        f"{len(result.items)} items {where}: {result.generated_count} made, "
        f"{result.filtered_count} rejected{f' ({rejected})' if rejected else ''}"
    )
    if result.unscored_count:
        output.say(f"{result.unscored_count} of them have no score")
    if result.failures:
        output.say(f"{len(result.failures)} failures; the last: {result.failures[-1]}")
    reasons = {
        "exhausted": "no new candidates can be made",
        "max_candidates": "max_candidates is reached",
        "budget": result.stop_cause or "max_cost is spent",
        "failures": "nothing but failures came",
        "cancelled": "stopped",
    }
    if result.stop_reason in reasons and len(result.items) == 0:
        output.say(f"no items: {reasons[result.stop_reason]}")
    elif result.stop_reason in reasons:
        output.say(f"fewer than asked for: {reasons[result.stop_reason]}")
