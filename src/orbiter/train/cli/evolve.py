"""`orbiter-train evolve`: improve prompts, or anything else that a strategy scores and varies."""

from __future__ import annotations

import asyncio
import logging
import math
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import typer

from orbiter.train.callback import map_bounded
from orbiter.train.cli.code import load_object, load_rewards
from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.options import ConfigFile, OverrideWords, new_run_folder, read_items
from orbiter.train.cli.output import JsonFlag, Output, shown
from orbiter.train.cli.settings.config_file import Settings, load
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.errors import ConfigError, boundary
from orbiter.train.evolution import (
    EvolutionConfig,
    EvolutionPipeline,
    EvolutionResult,
    EvolutionStrategy,
    PromptEvolution,
    StopReason,
)
from orbiter.train.llm import ChatModel, RemoteChatModel, ask
from orbiter.train.progress import LOG_SECONDS, is_plain, make_progress, working
from orbiter.train.report.write import write_report
from orbiter.train.runlog.cost import Cost, keep_cost, kept_cost
from orbiter.train.trajectory import TrajectoryItem

evolve_app = typer.Typer(rich_markup_mode=None)


@evolve_app.command()
def evolve(
    overrides: OverrideWords = None, *, config: ConfigFile = None, as_json: JsonFlag = False
) -> None:
    """Improve a prompt: the model of [llm] answers the data with it, [reward] scores the answers.

    prompts under [evolve] lists the first prompts; the same model rewrites them. To evolve anything
    else, set strategy = "file.py:make", which returns an EvolutionStrategy; prompts are then its
    first candidates. The run is recorded in run_dir (by default a new folder under runs/); the same
    folder continues it. eval under [data] scores the best prompt on items that the search never
    saw. With price under [llm], max_cost is money; without it, max_cost counts answers.
    """
    settings = load(config, parse_overrides(overrides or ()))
    output = Output(as_json=as_json)
    folder = Path(str(settings.section("evolve").get("run_dir") or new_run_folder("evolve")))
    again = _resume_command(folder, overrides or (), config)
    if is_plain(sys.stderr):
        logging.getLogger("orbiter.train").setLevel(logging.INFO)  # a line for each epoch
    try:
        result = asyncio.run(_evolve(settings, folder, output))
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.say(f"stopped; everything so far is kept. Continue with: {again}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    with working(f"drawing {folder}"):
        page = write_report(folder)
    _show(result, output)
    if result.stop_reason in (StopReason.FAILURES, StopReason.BUDGET):
        output.say(f"\nended early: {result.stop_cause}\nContinue with: {again}")
    output.say(f"\nreport: {page}")
    output.result(_as_json(result, folder, page))
    if result.stop_reason is StopReason.FAILURES:
        raise typer.Exit(ExitCode.CALLBACK)


def _resume_command(folder: Path, overrides: Sequence[str], config: Path | None) -> str:
    """Return the command that continues the run in `folder`, quoted for a shell."""
    words = ["orbiter-train", "evolve"]
    if config is not None:
        words += ["-c", str(config)]
    # The folder is added below; given twice, the later one would win by luck.
    kept = [word for word in overrides if not word.startswith("evolve.run_dir=")]
    return shlex.join([*words, *kept, f"evolve.run_dir={folder}"])


def _show(result: EvolutionResult[Any], output: Output) -> None:
    output.say(f"score {shown(result.initial_score)} before, {shown(result.best_score)} now")
    if result.best_interval is not None:
        output.say(f"      {result.best_interval}")
    if result.holdout_score is not None:
        output.say(f"      {shown(result.holdout_score)} on the held-out items of [data] eval")
    output.say(
        f"{result.evaluations} evaluations in {result.epochs_completed} epochs, "
        f"{result.failures} failures, cost {result.cost:.4g}; ended by {result.stop_reason}"
    )
    output.say(f"\n{result.best}")


def _as_json(result: EvolutionResult[Any], folder: Path, page: Path) -> dict[str, object]:
    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None  # JSON has no NaN

    return {
        "best": result.best,
        "score": number(result.best_score),
        "initial_score": number(result.initial_score),
        "holdout_score": number(result.holdout_score),
        "evaluations": result.evaluations,
        "failures": result.failures,
        "epochs": result.epochs_completed,
        "cost": result.cost,
        "stop_reason": str(result.stop_reason),
        "stop_cause": result.stop_cause,
        "folder": str(folder),
        "report": str(page),
    }


class _Search(NamedTuple):
    strategy: EvolutionStrategy[Any]
    holdout: Callable[[Any], Awaitable[float]] | None = None
    model: ChatModel | None = None
    """The model of [llm], if it is asked."""


async def _evolve(settings: Settings, folder: Path, output: Output) -> EvolutionResult[Any]:
    own = settings.own("evolve")
    first: Any = own.get("prompts")
    if not isinstance(first, list) or not first:
        raise ConfigError('there is nothing to begin with: set prompts = ["..."] under [evolve]')
    async with AsyncExitStack() as until:
        search = await _search(settings, until)
        config = settings.build("evolve", EvolutionConfig, run_dir=folder)
        pipeline = EvolutionPipeline(config, search.strategy, holdout=search.holdout)
        output.say(f"run folder {folder}")
        try:
            return await pipeline.run(first)
        finally:
            # Also after an error or Ctrl-C: the answers were paid for.
            _keep_cost(folder, search.model)


def _keep_cost(folder: Path, model: ChatModel | None) -> None:
    """Add what this process has used of an endpoint to the cost in the run's folder."""
    if isinstance(model, RemoteChatModel) and folder.is_dir():
        used = model.usage
        cost = Cost(
            endpoint_calls=used.answers,
            endpoint_tokens=used.prompt_tokens + used.completion_tokens,
            money=used.cost + used.unsure_cost,
        )
        keep_cost(folder, kept_cost(folder) + cost)


async def _search(settings: Settings, until: AsyncExitStack) -> _Search:
    own = settings.own("evolve")
    if own.get("strategy"):
        make = load_object(str(own["strategy"]), what="strategy")
        with boundary(f"strategy {own['strategy']!r}"):
            strategy = make()
        if not isinstance(strategy, EvolutionStrategy):
            kind = type(strategy).__name__
            raise ConfigError(
                f"strategy {own['strategy']!r} must return an EvolutionStrategy, got {kind}"
            )
        return _Search(strategy)
    data = settings.own("data")
    if not data.get("train"):
        raise ConfigError("there is nothing to try a prompt on: set train under [data]")
    from orbiter.train.cli.chat import chat_model

    items = read_items(str(data["train"]))
    held_out = read_items(str(data["eval"])) if data.get("eval") else []
    return _by_reward(settings, items, held_out, await chat_model(settings, until))


def _by_reward(
    settings: Settings,
    items: list[TrajectoryItem],
    held_out: list[TrajectoryItem],
    model: ChatModel,
) -> _Search:
    """Return the evolution of a system prompt, scored by the rewards of the config."""
    from orbiter.train.verl.reward import score

    rewards = load_rewards(settings.values.get("reward"))
    has_price = bool(settings.own("llm").get("price"))

    async def answer_to(prompt: Any, item: TrajectoryItem) -> tuple[str, float]:  # noqa: ANN401 - a text, or several by name
        system = prompt if isinstance(prompt, str) else "\n\n".join(map(str, prompt.values()))
        answer = await ask(
            model, [{"role": "system", "content": system}, {"role": "user", "content": item.state}]
        )
        return answer.text, answer.cost

    async def agent(prompt: Any, item: TrajectoryItem) -> str:  # noqa: ANN401 - likewise
        text, cost = await answer_to(prompt, item)
        if has_price:
            strategy.context.cost += cost
        return text

    async def metric(item: TrajectoryItem, answer: object) -> float:
        scores = await score([str(answer)], [item], rewards)
        return float(scores.total[0] or 0.0)

    # A semaphore and no number: all data of `holdout` decide whether its score in the journal still
    # counts, and how many are asked at once does not.
    limiter = asyncio.Semaphore(settings.build("evolve", EvolutionConfig).concurrency)

    async def holdout(prompt: Any) -> float:  # noqa: ANN401 - likewise
        async def one(item: TrajectoryItem) -> float:
            async with limiter:
                value = await metric(item, (await answer_to(prompt, item))[0])
            bar.update(bar.done + 1)
            return value

        with make_progress("held-out", len(held_out), every_seconds=LOG_SECONDS) as bar:
            scores = await map_bounded(held_out, one, concurrency=len(held_out))
        return math.fsum(scores) / len(scores)

    best = sum(max(0.0, reward.weight) for reward in rewards)
    # Without prices max_cost counts answers; with them the cost of each answer is added above.
    strategy = PromptEvolution(
        agent, items, metric, model, perfect=best or 1.0, price=0.0 if has_price else None
    )
    return _Search(strategy, holdout if held_out else None, model)
