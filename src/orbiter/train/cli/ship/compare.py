"""`orbiter-train compare`: is the new model better than the old one, and may it be shipped?"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from orbiter.train.cli.agent import AgentChoice, load_agent, read_tasks
from orbiter.train.cli.code import load_rewards
from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.options import ConfigFile, OverrideWords, new_run_folder, read_items
from orbiter.train.cli.output import JsonFlag, Output, duration, shown
from orbiter.train.cli.settings.config_file import RUN_CONFIG, Settings, load
from orbiter.train.cli.settings.measuring import measuring_config
from orbiter.train.cli.settings.overrides import parse_overrides
from orbiter.train.contained import check_contained
from orbiter.train.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from orbiter.train.comparison import Comparison, Plan
    from orbiter.train.comparison.result import Side
    from orbiter.train.evaluation import Interval
    from orbiter.train.llm import ChatModel
    from orbiter.train.verl import VeRLConfig

MODEL_FILES = ("config.json", "adapter_config.json")
"""Files whose presence marks a folder as a model."""
CODES: dict[str | None, ExitCode] = {"not met": ExitCode.NOT_MET, "undecided": ExitCode.UNDECIDED}
_ENDPOINT = re.compile(r"(.*)@(https?://.+)")

compare_app = typer.Typer(rich_markup_mode=None)


@compare_app.command()
def compare(
    a: Annotated[str, typer.Argument(help="The present model.", metavar="A")],
    b: Annotated[str, typer.Argument(help="The model that may replace it.", metavar="B")],
    overrides: OverrideWords = None,
    *,
    data: Annotated[
        Path | None, typer.Option(help="The held-out items; by default [data] eval.")
    ] = None,
    config: ConfigFile = None,
    require: Annotated[
        list[str] | None,
        typer.Option(help='A condition on B - A, such as "reward > 0"; may be given repeatedly.'),
    ] = None,
    no_regressions: Annotated[
        bool, typer.Option("--no-regressions", help="Require that B is worse in no slice.")
    ] = False,
    by: Annotated[
        str | None, typer.Option(help="Field of the items; its values are slices.")
    ] = None,
    looks: Annotated[int, typer.Option(help="Planned looks; it may stop at each of them.")] = 5,
    confidence: Annotated[float, typer.Option(help="Confidence of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the order of the items.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to create, with the report.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare two models on held-out items, and say whether B may be shipped.

    A and B are each a model, an adapter or a run's folder, or MODEL@URL for an endpoint. [reward],
    [agent], [eval] and [llm] are those of the config file, by default the one of run B or A. Both
    answer the same items in a random order; it stops as soon as everything is decided, and the
    intervals allow for that. With --require the exit code is 0 if the whole interval of each
    difference meets its condition, 9 if one is not met, and 10 if the items do not decide it.
    """
    # B first: the new model's settings are those that it would be shipped with.
    settings = load(config or _config_of(b) or _config_of(a), parse_overrides(overrides or ()))
    output = Output(as_json=as_json)
    agent = load_agent(settings)
    choices = _Choices(
        require=require or [],
        allow_regressions=not no_regressions,
        by=by or _text(settings.own("eval").get("by")),
        looks=looks,
        confidence=confidence,
        seed=seed,
    )
    items, path = _items(settings, data, with_agent=agent is not None)
    output.say(f"A {a}\nB {b}, on {path}")
    folder = out or new_run_folder("compare")
    _require_new(folder)
    result = asyncio.run(
        _compare((a, b), settings, items, agent=agent, choices=choices, output=output)
    )
    page = _keep(folder, result, [side for side in (a, b) if _is_run(side)])
    _print(result, output)
    output.say(f"report    {page}")
    places = {"data": str(path), "folder": str(folder), "report": str(page)}
    output.result(result.as_dict() | places)
    raise typer.Exit(CODES.get(result.verdict, ExitCode.OK))


class _Choices(NamedTuple):
    """The options of the comparison itself."""

    require: list[str]
    allow_regressions: bool
    by: str | None
    looks: int
    confidence: float
    seed: int


async def _compare(
    words: tuple[str, str],
    settings: Settings,
    items: Sequence[Any],
    *,
    agent: AgentChoice | None,
    choices: _Choices,
    output: Output,
) -> Comparison:
    from orbiter.train.comparison import compare as run_comparison

    reward = settings.values.get("reward")
    rewards = [] if agent is not None and reward is None else load_rewards(reward)
    samples = int(settings.own("eval").get("samples", 0))  # type: ignore[call-overload] # checked
    config = measuring_config(settings)
    played = agent or AgentChoice()
    async with AsyncExitStack() as until:
        a, b = [await _side(word, settings, config, until, sampled=samples > 0) for word in words]
        return await run_comparison(
            a,
            b,
            items,
            rewards,
            config=config,
            agent=played.agent,
            environment=played.environment,
            samples=samples,
            on_plan=lambda plan: _print_plan(plan, output),
            on_look=lambda result: output.say(f"after {result.items:>5} items: {_line(result)}"),
            require=choices.require,
            allow_regressions=choices.allow_regressions,
            by=choices.by,
            looks=choices.looks,
            confidence=choices.confidence,
            seed=choices.seed,
        )


async def _side(
    word: str, settings: Settings, config: VeRLConfig, until: AsyncExitStack, *, sampled: bool
) -> str | ChatModel:
    """Return what `compare` takes for a word of the command line."""
    endpoint = _ENDPOINT.fullmatch(word)
    if endpoint is None:
        return model_in(word)
    if not endpoint[1]:
        raise ConfigError(f"an endpoint is written MODEL@URL, and {word!r} has no model")
    from orbiter.train.cli.chat import chat_model

    asked: dict[str, object] = {"temperature": config.temperature if sampled else 0.0}
    # What [llm] says wins over what a local model would get.
    asked |= {"max_tokens": config.max_response_length} | settings.section("llm")
    # Last: which model is compared is said on the command line alone.
    asked |= {"model": endpoint[1], "base_url": endpoint[2]}
    return await chat_model(replace(settings, values={**settings.values, "llm": asked}), until)


def model_in(word: str) -> str:
    """Return the model that a word names: a run's folder stands for its model.

    Raises:
        ConfigError: it is an address without a model.
        StorageError: it is a run without a model.
    """
    if re.match(r"https?://", word):
        raise ConfigError(f"an endpoint is written MODEL@URL, such as qwen3@{word}")
    if not _is_run(word):
        return word
    check_contained(Path(word))
    if any((Path(word) / name).is_file() for name in MODEL_FILES):
        return word  # a run may keep its model beside its log
    if not (Path(word) / "model").is_dir():
        raise StorageError(f"{word} is a run without a model folder; name the model instead")
    return str(Path(word) / "model")


def _is_run(word: str) -> bool:
    return any((Path(word) / name).is_file() for name in ("run.json", RUN_CONFIG))


def _config_of(word: str) -> Path | None:
    """Return the settings of a run's folder; None if it is no run."""
    file = Path(word) / RUN_CONFIG
    if _ENDPOINT.fullmatch(word) or not file.is_file():
        return None
    check_contained(file.parent)
    return file


def _items(
    settings: Settings, data: Path | None, *, with_agent: bool
) -> tuple[Sequence[Any], str | Path]:
    own = settings.own("data")
    path = data or own.get("eval")
    if path is None:
        raise ConfigError("there are no held-out items: give --data FILE, or set [data] eval")
    kind = own.get("format") if data is None else None
    read: Callable[[str, str | None], Sequence[Any]] = read_tasks if with_agent else read_items
    return read(str(path), _text(kind)), Path(str(path))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _require_new(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} already exists and is not empty; choose another --out")


def _keep(folder: Path, result: Comparison, runs: Sequence[str]) -> Path:
    """Write the comparison into its folder, with the page; two runs are shown side by side."""
    from orbiter.train.report import keep_comparison, write_comparison, write_report

    folder.mkdir(parents=True, exist_ok=True)
    keep_comparison(folder, result)
    # Only two runs have curves to lay over each other; a model alone has none.
    if len(runs) == 2:
        return write_comparison(runs[0], runs[1], folder / "report.html", comparison=folder)
    return write_report(folder)


def _print_plan(plan: Plan, output: Output) -> None:
    for line in plan.lines:
        output.say(line)


def _line(result: Comparison) -> str:
    return f"reward {signed(result.difference)}"


def signed(difference: Interval) -> str:
    """Return a difference with its interval, all with their signs."""
    return f"{difference.mean:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}]"


def _print(result: Comparison, output: Output) -> None:
    early = ", stopped early" if result.stopped_early else ""
    output.say(f"\n{result.items} items{early}; B - A at {result.plan.looks.confidence:.0%}")
    rows = [
        (name, *(_mean(side, name) for side in (result.a, result.b)), signed(difference))
        for name, difference in result.differences.items()
    ]
    output.table(("", result.a.name, result.b.name, "B - A"), rows)
    if result.slices:
        output.say(f"\nby {result.plan.by}; these {len(result.slices)} intervals hold together")
        slices = [
            (s.value, str(s.difference.n), signed(s.difference), "regressed" if s.regressed else "")
            for s in result.slices
        ]
        output.table(("slice", "items", "B - A", ""), slices)
    output.say()
    output.table(
        ("cost", "items without a reward", *COSTS), [_cost(s) for s in (result.a, result.b)]
    )
    if result.detectable is not None:
        output.say(f"\nwith the measured spread, all items can show {result.detectable:.3g}")
    for checked in result.requirements:
        why = f" ({checked.why})" if checked.why else ""
        output.say(f"require   {checked.requirement}: {checked.verdict}{why}")
    if not result.allow_regressions:
        names = ", ".join(part.value for part in result.regressions)
        output.say(f"require   no regressions: {f'not met: {names}' if names else 'met'}")


COSTS = ("tokens here", "seconds", "endpoint tokens", "money")


def _mean(side: Side, name: str) -> str:
    return str(side.means[name]) if name in side.means else "-"


def _cost(side: Side) -> tuple[str, ...]:
    cost = side.cost
    return (
        side.name,
        str(side.failed),
        f"{cost.tokens:,}",
        duration(cost.seconds),
        f"{cost.endpoint_tokens:,}",
        shown(cost.money),
    )
