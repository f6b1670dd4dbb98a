"""`orbiter-train runs`: list runs, show one, compare two, resume one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from orbiter.train.cli.output import JsonFlag, Output, shown
from orbiter.train.contained import check_contained
from orbiter.train.errors import StorageError, TrainError
from orbiter.train.progress import working
from orbiter.train.runlog import Run, read_run
from orbiter.train.runlog.cost import COST_FILE

runs_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

EVOLUTION = "evolution.jsonl"
"""File of an evolution."""
SHOWN = (
    *("reward", "loss", "kl", "divergence", "entropy", "length"),
    *("eval/reward", "eval/loss", "eval/divergence"),
)
"""The metrics that a comparison shows first, if both runs have them."""


@runs_app.callback()
def runs() -> None:
    """List runs, show one, compare two, resume one."""


class ListedRun(NamedTuple):
    """A run's folder and its contents."""

    run: Run
    status: str
    result: dict[str, Any]

    @property
    def steps(self) -> int:
        """The last recorded step."""
        return int(self.run.metrics[-1]["step"]) if self.run.metrics else 0

    def last(self, name: str) -> float | None:
        """The last value of this metric."""
        series = self.run.series(name)
        return series[-1][1] if series else None

    def described(self) -> dict[str, object]:
        """Return the run as JSON."""
        return {
            "run": str(self.run.folder),
            "status": self.status,
            "steps": self.steps,
            "config": dict(self.run.config),
            "last": dict(self.run.metrics[-1]) if self.run.metrics else {},
        }


@runs_app.command(name="list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs are.")] = Path("runs"),
    *,
    as_json: JsonFlag = False,
) -> None:
    """List the runs below a folder, the latest last; damaged runs are listed separately."""
    output = Output(as_json=as_json)
    runs, damaged = _find_all(folder)
    rows = [
        (
            each.run.folder,
            each.status,
            each.steps,
            each.run.config.get("model", "-"),
            shown(each.last("reward")),
            shown(each.last("loss")),
        )
        for each in runs
    ]
    if rows:
        output.table(("run", "status", "steps", "model", "reward", "loss"), rows)
    elif not damaged:
        output.say(f"there are no runs in {folder}; `orbiter-train init DIR` creates a project")
    for run_folder, error in damaged.items():
        output.say(f"damaged: {run_folder}: {error}")
    output.result(
        {"runs": [each.described() for each in runs], "damaged": damaged},
    )


def _find_all(folder: Path) -> tuple[list[ListedRun], dict[str, str]]:
    """Return the runs below a folder, oldest first, and the error of each that cannot be read."""
    runs: list[ListedRun] = []
    damaged: dict[str, str] = {}
    with working(f"reading {folder}", "runs") as count:
        for number, file in enumerate(sorted(folder.glob("**/run.json"), key=_age), 1):
            try:
                runs.append(_find(file.parent))
            except (TrainError, OSError) as error:
                damaged[str(file.parent)] = " ".join(str(error).split())
            count(number)
    return runs, damaged


@runs_app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The folder of a run or of a comparison.")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Show one run: its state, its last metrics, its result and what it has cost."""
    from orbiter.train.runlog.cost import cost_of_run

    output = Output(as_json=as_json)
    check_contained(folder)
    is_run = (folder / "run.json").is_file()
    if not is_run and not any((folder / name).is_file() for name in (COST_FILE, EVOLUTION)):
        raise StorageError(
            f"{folder} holds no run: none of run.json, {EVOLUTION} and {COST_FILE} is in it"
        )
    # An evolution has no run.json, but it has a cost.
    shown_run = _find(folder) if is_run else None
    cost = cost_of_run(folder)
    if shown_run is not None:
        model = shown_run.run.config.get("model", "-")
        output.table(
            ("run", "status", "steps", "model"),
            [(folder, shown_run.status, shown_run.steps, model)],
        )
        metrics = shown_run.run.metrics
        last = {n: v for n, v in (metrics[-1] if metrics else {}).items() if n != "step"}
        output.say()
        output.table(("metric", "last"), [(name, shown(value)) for name, value in last.items()])
    output.say()
    output.table(
        ("cost", ""),
        [(name.replace("_", " "), shown(value)) for name, value in asdict(cost).items()],
    )
    described = {"run": str(folder)} if shown_run is None else shown_run.described()
    result = {} if shown_run is None else {"result": shown_run.result}
    output.result({**described, **result, "cost": asdict(cost)})


@runs_app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another run's folder.")],
    *,
    page: Annotated[Path | None, typer.Option(help="Also write a page that shows both.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how two runs differ in their settings and in their last metrics."""
    output = Output(as_json=as_json)
    a, b = _find(first), _find(second)
    settings = {
        name: (a.run.config.get(name), b.run.config.get(name))
        for name in dict.fromkeys([*a.run.config, *b.run.config])
        if a.run.config.get(name) != b.run.config.get(name)
    }
    metrics = {name: (a.last(name), b.last(name)) for name in _shared(a, b)}
    rows = [(f"{n}", *map(shown, pair)) for n, pair in settings.items()]
    output.say("settings that differ" if rows else "the settings are the same")
    if rows:
        output.table(("setting", str(first), str(second)), rows)
    output.say("\nmeasured last")
    output.table(
        ("metric", str(first), str(second)), [(n, *map(shown, pair)) for n, pair in metrics.items()]
    )
    if page is not None:
        from orbiter.train.report import write_comparison

        output.say(f"\nwrote {write_comparison(first, second, page)}")
    output.result({"settings": settings, "metrics": metrics})


@runs_app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The run's folder.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.NAME=VALUE]...", show_default=False),
    ] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """Resume a stopped run from its last checkpoint.

    It ends with the same weights and metrics as if it had never been stopped.
    """
    from orbiter.train.cli.train import resume_run

    raise typer.Exit(resume_run(folder, overrides or [], Output(as_json=as_json)))


def _find(folder: Path) -> ListedRun:
    # the first read checks that links stay inside the folder
    run, result = read_run(folder), _result(folder)
    if _is_held(folder):
        return ListedRun(run, "running", result)
    return ListedRun(run, "finished" if result.get("finished") else "stopped", result)


def _result(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "result.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def _is_held(folder: Path) -> bool:
    """Return whether a process is writing this run now."""
    from orbiter.train.storage import FileLock

    lock = folder / "metrics.jsonl.lock"
    if lock.is_symlink() or not lock.is_file():
        # never open the target of a link in a foreign folder
        return False
    try:
        # Taken and given back at once: the only portable way to learn whether somebody holds it.
        FileLock(lock).release()
    except StorageError:
        return True
    return False


def _shared(a: ListedRun, b: ListedRun) -> list[str]:
    # Only what both have can be compared.
    names = {n for row in a.run.metrics for n in row} & {n for row in b.run.metrics for n in row}
    return [n for n in SHOWN if n in names] + sorted(names - {*SHOWN, "step"})


def _age(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0  # a broken link
