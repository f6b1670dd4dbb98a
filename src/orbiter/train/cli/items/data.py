"""`orbiter-train data`: inspect a data file, check it, and write an improved one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import typer

from orbiter.train.cli.exits import ExitCode
from orbiter.train.cli.items.rows import filter_items, merge, require_other, show
from orbiter.train.cli.options import DataFile, FormatName, read_items, write_items
from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.progress import working
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.trajectory.summary import Summary, summarise

data_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

PROBLEMS_SHOWN = 20
"""Problems printed one by one; --json prints all."""
PARTS = ("train", "val", "test")
"""Names of the parts of a split; further ones get numbers."""

Target = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]

UnitName = Annotated[
    str,
    typer.Option(
        "--unit",
        help="What is compared and kept as one: episode, step, or text (the whole state).",
    ),
]


data_app.command()(show)
data_app.command(name="filter")(filter_items)
data_app.command()(merge)


@data_app.callback()
def data() -> None:
    """Inspect a dataset, and make a better one from it."""


@data_app.command()
def check(file: DataFile, *, format: FormatName = None, as_json: JsonFlag = False) -> NoReturn:
    """Read a whole file and report everything that is wrong with it, with line numbers."""
    from orbiter.train.formats.registry import check as check_file

    output = Output(as_json=as_json)
    with working(f"reading {file}") as count:
        report = check_file(file, format, on_count=count)
    output.say(
        f"{file}: {report.format}, {report.items} items in {report.episodes} episodes, "
        f"{report.with_reward} with a reward"
    )
    for problem in report.problems[:PROBLEMS_SHOWN]:
        output.say(f"  {problem}")
    if len(report.problems) > PROBLEMS_SHOWN:
        output.say(f"  and {len(report.problems) - PROBLEMS_SHOWN} more")
    for note in report.notes:
        output.say(f"  {note}")
    output.say("no problems found" if report.ok else f"{len(report.problems)} problems")
    output.result(
        {
            "path": str(file),
            "format": report.format,
            "items": report.items,
            "episodes": report.episodes,
            "with_reward": report.with_reward,
            "problems": [problem._asdict() for problem in report.problems],
            "notes": list(report.notes),
        }
    )
    raise typer.Exit(ExitCode.OK if report.ok else ExitCode.DATA)


@data_app.command()
def stats(file: DataFile, *, format: FormatName = None, as_json: JsonFlag = False) -> None:
    """Count items and average their rewards: overall, per agent, per task, with intervals."""
    output = Output(as_json=as_json)
    items = read_items(file, format)
    scored = [item for item in items if item.reward is not None]
    summary = summarise(scored, waiting=len(items) - len(scored))
    lengths = {name: _lengths(items, name) for name in ("state", "action")}
    episodes = _episodes(items)
    output.table(("what", "how much"), _rows(len(items), episodes, summary, lengths))
    output.result(
        {
            "items": len(items),
            "episodes": episodes,
            "without_reward": summary.waiting,
            "reward": None if summary.reward is None else summary.reward._asdict(),
            "by_agent": {name: each._asdict() for name, each in summary.by_agent.items()},
            "by_task": {name: each._asdict() for name, each in summary.by_task.items()},
            "characters": {name: each._asdict() for name, each in lengths.items()},
        }
    )


@data_app.command()
def dedup(
    file: DataFile,
    *,
    out: Target,
    threshold: Annotated[
        float,
        typer.Option(help="Jaccard similarity from which rows count as duplicates, in (0, 1]."),
    ] = 0.9,
    keep: Annotated[
        str, typer.Option(help="Which of several duplicates to keep: best, first, last, longest.")
    ] = "best",
    unit: UnitName = "episode",
    key: Annotated[
        str | None,
        typer.Option(help="Compare this field or metadata entry instead, such as state."),
    ] = None,
    format: FormatName = None,
    as_json: JsonFlag = False,
) -> None:
    """Drop near-duplicates. Rows are compared by what they add to prompt and history."""
    from orbiter.train.synthesis import CurationReport, deduplicate

    output, report = Output(as_json=as_json), CurationReport()
    items = read_items(file, format)
    # A file that is read cannot be written at the same time.
    require_other([file], out)
    with working(f"comparing {len(items)} items"):
        kept = deduplicate(items, threshold, keep=keep, unit=unit, key=key, report=report)  # type: ignore[arg-type] # deduplicate refuses other words
    for drop in report.dropped[:PROBLEMS_SHOWN]:
        output.say(f"  row {drop.index} {drop.detail}")
    output.say(f"{len(items)} items, {len(report.dropped)} left out, {len(kept)} kept in {out}")
    write_items(kept, out)
    dropped = [
        {"row": d.index, "like": d.witness, "similarity": d.similarity} for d in report.dropped
    ]
    output.result({"items": len(items), "kept": len(kept), "out": str(out), "dropped": dropped})


@data_app.command()
def split(
    file: DataFile,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the parts.")],
    ratios: Annotated[
        str, typer.Option(help="Shares of the parts; their sum is 1.")
    ] = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(help="Seed of the random assignment.")] = 0,
    group_by: Annotated[
        str,
        typer.Option(
            help="What keeps rows together: fields or metadata entries, separated by commas."
        ),
    ] = "task_id,episode_id,lineage",
    near_duplicates: Annotated[
        str,
        typer.Option(help="Jaccard similarity of states from which rows stay together, or none."),
    ] = "0.8",
    unit: UnitName = "episode",
    format: FormatName = None,
    as_json: JsonFlag = False,
) -> None:
    """Split without leaks: a task, episode, ancestor or similar state is in one part only."""
    from orbiter.train.synthesis import SplitReport, split_dataset

    output, report = Output(as_json=as_json), SplitReport()
    shares = _shares(ratios)
    items = read_items(file, format)
    # Three shares at most have the usual names: train, validation and test.
    names = PARTS if len(shares) <= len(PARTS) else [f"part-{n}" for n in range(1, len(shares) + 1)]
    targets = [out / f"{name}.jsonl" for name, _ in zip(names, shares, strict=False)]
    for target in targets:
        # All before the first is written, so that a split is never half old and half new.
        if target.exists():
            raise StorageError(f"{target} is there already; choose another folder")
    with working(f"splitting {len(items)} items"):
        parts = split_dataset(
            items,
            shares,
            seed=seed,
            group_by=[name.strip() for name in group_by.split(",") if name.strip()],
            near_duplicates=_similarity(near_duplicates),
            unit=unit,  # type: ignore[arg-type]  # split_dataset refuses other words
            report=report,
        )
    for target, part in zip(targets, parts, strict=True):
        write_items(part, target)
        output.say(f"{len(part):6} items in {target}")
    output.say(
        f"{report.groups} groups of rows that belong together, the largest of "
        f"{report.biggest_group}; {report.leaked} leaks"
    )
    sizes = {str(t): len(part) for t, part in zip(targets, parts, strict=True)}
    output.result({"parts": sizes, "groups": report.groups, "leaked": report.leaked})


def _episodes(items: Sequence[TrajectoryItem]) -> int:
    """Count episodes as `data check` does: an item without an episode is one."""
    named = {item.episode_id for item in items if item.episode_id is not None}
    return len(named) + sum(item.episode_id is None for item in items)


class Lengths(NamedTuple):
    """Lengths of the texts of a field, in characters."""

    median: int
    longest: int


def _lengths(items: Sequence[TrajectoryItem], name: str) -> Lengths:
    ordered = sorted(len(getattr(item, name)) for item in items)
    return Lengths(ordered[len(ordered) // 2], ordered[-1])


def _rows(
    count: int, episodes: int, summary: Summary, lengths: Mapping[str, Lengths]
) -> list[tuple[str, str]]:
    return [
        ("items", f"{count}"),
        ("episodes", f"{episodes}"),
        ("without a reward", f"{summary.waiting}"),
        ("mean reward", f"{summary.reward or '-'}"),
        *((f"  agent {name}", str(each)) for name, each in summary.by_agent.items()),
        *((f"  task {name}", str(each)) for name, each in list(summary.by_task.items())[:20]),
        *(
            (f"characters of {name}", f"median {each.median}, longest {each.longest}")
            for name, each in lengths.items()
        ),
    ]


def _shares(ratios: str) -> list[float]:
    try:
        return [float(share) for share in ratios.split(",")]
    except ValueError:
        raise ConfigError(f"--ratios must look like 0.8,0.1,0.1, got {ratios!r}") from None


def _similarity(text: str) -> float | None:
    if text.strip().lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--near-duplicates must be a similarity in (0, 1] or none, got {text!r}"
        ) from None
