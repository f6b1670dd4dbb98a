"""`orbiter-train synth`: generate data from templates, a language model, or your own code."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import typer

from orbiter.train.cli.code import load_object
from orbiter.train.cli.exits import Code
from orbiter.train.cli.options import ConfigFile, OverrideWords, read_items, write_items
from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.cli.settings.config_file import Settings, load
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.errors import ConfigError, boundary, did_you_mean
from orbiter.train.synthesis import (
    DataSynthesiser,
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
    with the model of [llm], or step = "file.py:make" for your own DataSynthesiser. A stopped run
    continues where it was.
    """
    settings = load(config, parse_overrides(overrides or ()))
    output = Output(as_json=as_json)
    own = settings.own("synth")
    if not own.get("out"):
        raise ConfigError('there is nowhere to write to: set out = "more.jsonl" under [synth]')
    out = Path(str(own["out"]))
    result = asyncio.run(_synthesise(settings, out))
    written = write_items(result.items, out) if result.items else 0
    _tell(result, out, output)
    output.result(
        {
            "out": str(out),
            "written": written,
            "stop_reason": result.stop_reason,
            "made": result.generated_count,
            "rejected": result.rejected,
            "cost": result.cost,
        }
    )
    raise typer.Exit(Code.INTERRUPTED if result.stop_reason == "cancelled" else Code.OK)


async def _synthesise(settings: Settings, out: Path) -> SynthesisResult:
    own = settings.own("synth")
    seeds = read_items(str(own["seeds"])) if own.get("seeds") else []
    async with AsyncExitStack() as until:
        pipeline = SynthesisPipeline(
            settings.build("synth", SynthesisConfig), run_dir=out.with_name(f"{out.name}.run")
        )
        for step in await _steps(settings, until):
            pipeline.add_step(step)
        return await pipeline.run(seeds)


async def _steps(settings: Settings, until: AsyncExitStack) -> list[DataSynthesiser]:
    own: dict[str, Any] = settings.own("synth")
    steps: list[DataSynthesiser] = []
    if own.get("templates"):
        steps.append(TemplateSynthesiser(own["templates"], own.get("variables") or {}))
    if own.get("step"):
        make = load_object(str(own["step"]), what="step")
        with boundary(f"step {own['step']!r}"):
            steps.append(make() if callable(make) else make)
    if own.get("teacher"):
        from orbiter.train.cli.chat import chat_model
        from orbiter.train.synthesis.llm import synthesisers as llm

        model = await chat_model(settings, until)
        for name in own["teacher"]:
            if name not in TEACHERS:
                where = settings.where("synth", "teacher")
                known = ", ".join(TEACHERS)
                hint = did_you_mean(str(name), TEACHERS)
                raise ConfigError(f"{where}teacher must list some of {known}, got {name!r}{hint}")
            steps.append(getattr(llm, TEACHERS[name])(model))
    if not steps:
        raise ConfigError("[synth] has nothing to make data with: set templates, teacher or step")
    return steps


def _tell(result: SynthesisResult, out: Path, output: Output) -> None:
    rejected = ", ".join(f"{count} {reason}" for reason, count in result.rejected.items())
    output.say(
        f"{len(result.items)} items in {out}: {result.generated_count} made, "
        f"{result.filtered_count} rejected{f' ({rejected})' if rejected else ''}"
    )
    reasons = {
        "exhausted": "no new candidates can be made",
        "max_candidates": "max_candidates is reached",
        "budget": "max_cost is spent",
        "cancelled": "stopped; run the same command to continue",
    }
    if result.stop_reason in reasons:
        output.say(f"fewer than asked for: {reasons[result.stop_reason]}")
