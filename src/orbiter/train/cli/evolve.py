"""`orbiter-train evolve`: better words, by trying and rewriting them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import typer

from orbiter.train.cli.code import load_object, load_rewards
from orbiter.train.cli.datafiles import read_items
from orbiter.train.cli.options import ConfigFile, OverrideWords
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
)
from orbiter.train.llm import ChatModel, ask
from orbiter.train.trajectory import TrajectoryItem

evolve_app = typer.Typer(rich_markup_mode=None)


@evolve_app.command()
def evolve(
    overrides: OverrideWords = None, *, config: ConfigFile = None, as_json: JsonFlag = False
) -> None:
    """Improve a prompt: the model of [llm] works by it on the data, [reward] judges, it rewrites.

    [evolve] names the prompts to begin with. Anything else that can be scored and varied goes by
    strategy = "file.py:make", which returns an EvolutionStrategy; prompts then are its first
    candidates. With run_dir, a run that was stopped goes on where it was.
    """
    settings = load(config, parse_overrides(overrides or ()))
    output = Output(as_json=as_json)
    result = asyncio.run(_evolve(settings))
    output.say(f"score {shown(result.initial_score)} before, {shown(result.best_score)} now")
    if result.best_interval is not None:
        output.say(f"      {result.best_interval}")
    output.say(
        f"{result.evaluations} evaluations in {result.epochs_completed} epochs, "
        f"{result.failures} failed; ended by {result.stop_reason}"
    )
    output.say(f"\n{result.best}")
    output.result(
        {
            "best": result.best,
            "score": result.best_score,
            "initial_score": result.initial_score,
            "evaluations": result.evaluations,
            "epochs": result.epochs_completed,
            "cost": result.cost,
            "stop_reason": str(result.stop_reason),
        }
    )


async def _evolve(settings: Settings) -> EvolutionResult[Any]:
    own = settings.own("evolve")
    first: Any = own.get("prompts")
    if not isinstance(first, list) or not first:
        raise ConfigError('there is nothing to begin with: set prompts = ["..."] under [evolve]')
    async with AsyncExitStack() as until:
        strategy = await _strategy(settings, until)
        pipeline = EvolutionPipeline(settings.build("evolve", EvolutionConfig), strategy)
        return await pipeline.run(first)


async def _strategy(settings: Settings, until: AsyncExitStack) -> EvolutionStrategy[Any]:
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
        return strategy
    data = settings.own("data")
    if not data.get("train"):
        raise ConfigError("there is nothing to try a prompt on: set train under [data]")
    from orbiter.train.cli.chat import chat_model

    items = read_items(str(data["train"]))
    return _by_reward(settings, items, await chat_model(settings, until))


def _by_reward(
    settings: Settings, items: list[TrajectoryItem], model: ChatModel
) -> EvolutionStrategy[Any]:
    """Return the evolution of a system prompt, judged by the rewards of the config."""
    from orbiter.train.verl.reward import score

    rewards = load_rewards(settings.values.get("reward"))

    async def agent(prompt: Any, item: TrajectoryItem) -> str:  # noqa: ANN401 - a text, or several by name
        said = await ask(
            model,
            [{"role": "system", "content": prompt}, {"role": "user", "content": item.state}],
        )
        return said.text

    async def metric(item: TrajectoryItem, answer: object) -> float:
        worth = await score([str(answer)], [item], rewards)
        return float(worth.total[0] or 0.0)

    best = sum(max(0.0, reward.weight) for reward in rewards)
    return PromptEvolution(agent, items, metric, model, perfect=best or 1.0)
