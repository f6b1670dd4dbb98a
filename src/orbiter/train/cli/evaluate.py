"""`orbiter-train eval`: measure how good a model is, with an interval, or compare two models."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orbiter.train.chat.tool_calls import name_of
from orbiter.train.cli.agent import AgentChoice, load_agent, read_tasks
from orbiter.train.cli.code import load_rewards
from orbiter.train.cli.judges import calibrate_all
from orbiter.train.cli.options import OverrideWords, read_items
from orbiter.train.cli.output import JsonFlag, Output, shown
from orbiter.train.cli.settings.config_file import RUN_CONFIG, Settings, load
from orbiter.train.cli.settings.measuring import OFF, measuring_config
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.comparison.slices import task_fields
from orbiter.train.contained import check_contained
from orbiter.train.engine.models.saved_files import holds_reward_model
from orbiter.train.errors import ConfigError, DataError, StorageError, did_you_mean
from orbiter.train.evaluation import Interval, mean_interval

if TYPE_CHECKING:
    from orbiter.train.preference.reward_model_quality import RewardQuality
    from orbiter.train.verl.evaluate import Assessment, ScoredAttempt

SHARE = 0.9
"""Share of the attempts from which one action counts as the model's only one."""
ENOUGH = 8
"""Fewest tasks for which that is worth a warning."""
TEXT_CHARS = 60

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

    [reward] scores the answers. With [agent], your agent or environment plays each task with the
    model. [eval] may set samples (answers per item, for pass@k; 0 means one greedy answer), success
    (the reward from which an answer passes) and by (a field, such as a label, for whose values the
    reward is also measured separately). A warning says if one answer or tool is used nearly always.

    A reward model writes no answers: it is measured on pairs, by how often it prefers the better
    one.
    """
    settings = _settings(config, run, overrides or [])
    models = model or [_model_of(settings, run)]
    path = data or settings.own("data").get("eval") or settings.own("data").get("train")
    if path is None:
        raise ConfigError("there is no evaluation data: give --data FILE, or set [data] eval")
    output = Output(as_json=as_json)
    if _score_answers(models):
        _measure_reward_models(settings, models, data, str(path), output)
        return
    agent = load_agent(settings)
    kind = settings.own("data").get("format") if data is None else None
    read: Callable[[str, str | None], Sequence[Any]] = read_tasks if agent else read_items
    items = read(str(path), None if kind is None else str(kind))
    by = settings.own("eval").get("by")
    assessments = {name: asyncio.run(_measure(settings, agent, name, items)) for name in models}
    output.say(f"{len(items)} {'tasks' if agent else 'items'} of {path}")
    measured = {name: each.metrics.measured() for name, each in assessments.items()}
    _print(measured, output)
    result: dict[str, object] = {"items": len(items), "data": str(path), "models": measured}
    if by is not None:
        result["by"] = {"field": by, "models": _print_slices(assessments, str(by), output)}
    warnings = [
        line for name, each in assessments.items() for line in one_sided(each.attempts, name)
    ]
    notes = {note: None for each in assessments.values() for note in each.metrics.notes}
    warnings += list(notes)
    for line in warnings:
        output.say(f"warning: {line}")
    output.result(result | {"warnings": warnings})


def _score_answers(models: Sequence[str]) -> bool:
    """Return whether the models are reward models.

    Raises:
        ConfigError: only some of them are.
    """
    scorers = [name for name in models if holds_reward_model(Path(name).expanduser())]
    if scorers and len(scorers) < len(models):
        raise ConfigError(
            f"{scorers[0]} is a reward model, which scores answers, and "
            f"{next(name for name in models if name not in scorers)} writes them: they cannot be "
            "compared; measure each by itself"
        )
    return bool(scorers)


def _measure_reward_models(
    settings: Settings, models: Sequence[str], data: Path | None, path: str, output: Output
) -> None:
    """Measure reward models on held-out pairs, as at the end of their training."""
    from orbiter.train.preference import RewardModelConfig, RewardModelTrainer

    if settings.own("eval").get("by") is not None:
        raise ConfigError("eval.by has no effect on a reward model; leave it out")
    kind = settings.own("data").get("format") if data is None else None
    items = read_items(path, None if kind is None else str(kind))

    async def quality(name: str) -> RewardQuality:
        fixed: dict[str, Any] = {**OFF, "model": name}
        config = settings.build("reward-model", RewardModelConfig, **fixed)
        return await RewardModelTrainer(config).quality(items)

    measured = {name: asyncio.run(quality(name)).measured() for name in models}
    output.say(f"{len(items)} items of {path}")
    _print(measured, output)
    output.result({"items": len(items), "data": path, "models": measured})


def _print(measured: Mapping[str, Mapping[str, float]], output: Output) -> None:
    names = list(dict.fromkeys(metric for each in measured.values() for metric in each))
    rows = [[metric, *(shown(each.get(metric)) for each in measured.values())] for metric in names]
    output.table(["measure", *measured], rows)


def _print_slices(
    assessments: Mapping[str, Assessment], by: str, output: Output
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Print each model's reward for each value of a field; return the numbers."""
    slices = {name: rewards_by(each.attempts, by) for name, each in assessments.items()}
    values = sorted({value for each in slices.values() for value in each})
    rows = [
        [value, *(str(each[value]) if value in each else "-" for each in slices.values())]
        for value in values
    ]
    output.say()
    output.table([f"reward by {by}", *slices], rows)
    return {
        name: {value: interval._asdict() for value, interval in each.items()}
        for name, each in slices.items()
    }


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
    sections = ("train", "sft", "offline", "prefer")
    model = next(
        (named for name in sections if (named := settings.section(name).get("model"))), None
    )
    if model is None:
        raise ConfigError("there is no model: give --model, or set it under [train]")
    return str(model)


async def _measure(
    settings: Settings, agent: AgentChoice | None, model: str, items: Sequence[Any]
) -> Assessment:
    from orbiter.train.verl import VeRLTrainer

    own: dict[str, Any] = settings.own("eval")
    samples, success = own.get("samples", 0), own.get("success", 1.0)
    config = measuring_config(settings, model=model)
    reward = settings.values.get("reward")
    rewards = [] if agent is not None and reward is None else load_rewards(reward, settings)
    choice = agent or AgentChoice()
    await calibrate_all(rewards, settings)
    trainer = VeRLTrainer(config, rewards, agent=choice.agent, environment=choice.environment)
    return await trainer.assess(items, samples=samples, success=success)


def rewards_by(attempts: Sequence[ScoredAttempt], field: str) -> dict[str, Interval]:
    """Return the mean reward for each value of a field, with an interval over its tasks.

    Raises:
        DataError: no task has the field.
    """
    slices: dict[str, dict[int, list[float]]] = {}
    for attempt in attempts:
        value = _value(attempt, field)
        if attempt.reward is not None and value is not None:
            tasks = slices.setdefault(value, {})
            tasks.setdefault(id(attempt.item), []).append(attempt.reward)
    if not slices:
        known = sorted({name for attempt in attempts for name in _fields(attempt)})
        raise DataError(
            f"eval.by={field!r}: no task has this field{did_you_mean(field, known)}; the fields "
            f"are {', '.join(known) or 'none'}"
        )
    return {
        value: mean_interval([fmean(rewards) for rewards in tasks.values()])
        for value, tasks in slices.items()
    }


def _fields(attempt: ScoredAttempt) -> Mapping[str, Any]:
    """Return the fields of a task by name."""
    task = None if attempt.episode is None else attempt.episode.task
    return task_fields(task if isinstance(task, Mapping) else attempt.item)


def _value(attempt: ScoredAttempt, field: str) -> str | None:
    value = _fields(attempt).get(field)
    return None if value is None else str(value)


def one_sided(attempts: Sequence[ScoredAttempt], model: str) -> list[str]:
    """Return a warning if the model takes the same action on nearly all tasks.

    An agent that always takes the one safe action (escalate, refuse) can score well without having
    understood anything. An action is the last tool of an episode, or else the answer.
    """
    actions = [action for attempt in attempts if (action := _action(attempt)) is not None]
    tasks = len({id(attempt.item) for attempt in attempts})
    if tasks < ENOUGH or not actions:
        return []
    (most, count), *_ = Counter(actions).most_common(1)
    if count < SHARE * len(actions):
        return []
    wanted = {attempt.item.action for attempt in attempts if attempt.item.action}
    if len(wanted) == 1:  # the data themselves have a single right answer
        return []
    shown = most if len(most) <= TEXT_CHARS else f"{most[:TEXT_CHARS]}..."
    return [
        f"{model} does the same nearly everywhere: {shown!r} in {count} of {len(actions)} "
        "attempts, whatever the task; its reward may show one safe action rather than skill"
    ]


def _action(attempt: ScoredAttempt) -> str | None:
    if attempt.episode is None:
        return attempt.output.strip()
    if attempt.episode.failed:
        return None
    calls = [
        name_of(call)
        for turn in attempt.episode.turns
        for call in turn.reply.get("tool_calls") or ()
    ]
    return f"{calls[-1]}()" if calls else attempt.output.strip()
