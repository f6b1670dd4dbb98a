"""`orbiter-train eval`: measure how good a model is, with an interval, or compare two models."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from orbiter.train.cli.code import load_rewards
from orbiter.train.cli.options import OverrideWords, read_items
from orbiter.train.cli.output import JsonFlag, Output, shown
from orbiter.train.cli.settings.config_file import RUN_CONFIG, Settings, load
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.contained import check_contained
from orbiter.train.errors import ConfigError, StorageError

eval_app = typer.Typer(rich_markup_mode=None)


@eval_app.command(name="eval")
def evaluate(
    overrides: OverrideWords = None,
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The settings: a TOML or YAML file.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A run's folder: use its settings and its model.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="The model; give it twice to compare two."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The items; by default [data] eval.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how good a model is, with a confidence interval.

    [reward] scores the answers. [eval] may set samples (answers per item, for pass@k; 0 means one
    greedy answer) and success (the reward from which an answer passes).
    """
    settings = _settings(config, run, overrides or [])
    models = model or [_model_of(settings, run)]
    path = data or settings.own("data").get("eval") or settings.own("data").get("train")
    if path is None:
        raise ConfigError("there is nothing to evaluate on: give --data FILE, or set [data] eval")
    items = read_items(str(path))
    output = Output(as_json=as_json)
    found = {name: asyncio.run(_measure(settings, name, items)) for name in models}
    output.say(f"{len(items)} items of {path}")
    names = list(dict.fromkeys(metric for each in found.values() for metric in each))
    rows = [[metric, *(shown(each.get(metric)) for each in found.values())] for metric in names]
    output.table(["measure", *found], rows)
    output.result({"items": len(items), "data": str(path), "models": found})


def _settings(config: Path | None, run: Path | None, overrides: list[str]) -> Settings:
    file = config
    if run is not None:
        if config is not None:
            raise ConfigError("--run already brings settings: give either --run or --config")
        check_contained(run)
        file = run / RUN_CONFIG
        if not file.is_file():
            raise StorageError(f"{run} holds no run: {RUN_CONFIG} is missing")
    return load(file, parse_overrides(overrides))


def _model_of(settings: Settings, run: Path | None) -> str:
    if run is not None:
        if not (run / "model").is_dir():
            raise StorageError(f"{run} has no model yet; give one with --model")
        return str(run / "model")
    told = settings.section("train").get("model") or settings.section("sft").get("model")
    if told is None:
        raise ConfigError("there is no model: give --model, or set it under [train]")
    return str(told)


async def _measure(settings: Settings, model: str, items: list[Any]) -> dict[str, float]:
    from orbiter.train.verl import VeRLConfig, VeRLTrainer

    own: dict[str, Any] = settings.own("eval")
    samples, success = own.get("samples", 0), own.get("success", 1.0)
    config = settings.build(
        "train", VeRLConfig, model=model, output_dir=None, resume=False, save_every=0, trackers=(),
        eval_every=None,
    )  # fmt: skip
    trainer = VeRLTrainer(config, load_rewards(settings.values.get("reward")))
    measured = await trainer.evaluate(items, samples=samples, success=success)
    return measured.measured()
