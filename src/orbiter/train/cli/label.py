"""`orbiter-train label`: label answers on a page; `labels`: merge the labels of several people."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orbiter.train.cli.options import DataFile, FormatName, Host, read_items, write_items
from orbiter.train.cli.output import JsonFlag, Output, shown
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.evaluation import read_judgements

if TYPE_CHECKING:
    from orbiter.train.formats.preference import Pair
    from orbiter.train.labelling import LabelSession, Merged

label_app = typer.Typer(rich_markup_mode=None)
labels_app = typer.Typer(rich_markup_mode=None)

SUFFIX = ".labels.jsonl"


@label_app.command()
def label(
    data: DataFile,
    *,
    kind: Annotated[
        Literal["better", "rating", "right"] | None,
        typer.Option(help="What to ask; by default better if tasks have several answers."),
    ] = None,
    rater: Annotated[
        str | None, typer.Option(help="Your name in the labels; by default the user's.")
    ] = None,
    scale: Annotated[int, typer.Option(help="Largest rating, from 2 to 9.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The labels; by default DATA.labels.jsonl.")
    ] = None,
    format_name: FormatName = None,
    seed: Annotated[int, typer.Option(help="Seed of the order and of the sides.")] = 0,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 picks a free one.")] = 7869,
    as_json: JsonFlag = False,
) -> None:
    """Label the answers of a file on a page in your browser, with the keyboard.

    The page asks which of two answers to a task is better, how good an answer is, or whether it is
    right. Order and sides are shuffled, and nothing says which model wrote what. Each label is
    saved at once; the same command continues. `labels` merges the labels of several people.
    """
    from orbiter.train.labelling import LabelSession, make_units, serve_labels

    output = Output(as_json=as_json)
    path = out or data.with_name(data.name + SUFFIX)
    units = make_units(read_items(data, format_name), kind)
    name = rater if rater is not None else _user()
    with LabelSession(units, path, rater=name, scale=scale, seed=seed) as session:

        def ready(address: str) -> None:
            output.say(f"{session.done} of {session.total} labelled by {name}")
            if session.elsewhere:
                output.say(
                    f"{session.elsewhere} more labels by {name} in {path} are of answers that "
                    f"{data} does not hold (was it changed?); they stay in the file"
                )
            output.say(f"open {address} (Ctrl-C ends it)")
            output.result(_described(session, path) | {"address": address})

        serve_labels(session, host, port, on_ready=ready)
        output.say(f"\n{session.done} of {session.total} labelled; they are in {path}")


def _described(session: LabelSession, path: Path) -> dict[str, object]:
    return {
        "labels": str(path),
        "kind": session.kind,
        "rater": session.rater,
        "done": session.done,
        "total": session.total,
        "elsewhere": session.elsewhere,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no account, as in some containers
        return "labeller"


@labels_app.command()
def labels(
    files: Annotated[list[Path], typer.Argument(help="Files of labels, of people or of judges.")],
    *,
    data: Annotated[
        Path | None, typer.Option(help="The data that was labelled, for its chats and tools.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Write the pairs as preference data, for `prefer`.")
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="Write rated, right and wrong answers with rewards.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Merge labels, state how far the labellers agree, and write training data.

    If a person labelled the same answer or pair again, the later label replaces the earlier one.
    Among several people the majority wins, and ratings are averaged. The agreement is
    Krippendorff's alpha: 1 is perfect, 0 is chance.
    """
    from orbiter.train.labelling import labelled_items, labelled_pairs, merge

    output = Output(as_json=as_json)
    for target in (pairs, items):
        # Before the labels are read: a mistake in a name must show at once.
        if target is not None and target.exists():
            raise ConfigError(f"{target} already exists; choose another name")
    if pairs is not None and pairs.suffix != ".jsonl":
        raise ConfigError(f"--pairs writes JSON lines: the name must end in .jsonl, got {pairs}")
    merged = merge(judgement for file in files for judgement in read_judgements(file))
    known = [] if data is None else read_items(data)
    _print(merged, output)
    written: dict[str, int] = {}
    if pairs is not None:
        written[str(pairs)] = _write_pairs(pairs, labelled_pairs(merged, known))
    if items is not None:
        labelled = list(labelled_items(merged, known))
        if not labelled:
            raise DataError("no answer was rated, or labelled right or wrong")
        written[str(items)] = write_items(labelled, items)
    for target_name, count in written.items():
        output.say(f"wrote {count} to {target_name}")
    output.result(
        {
            "labels": len(merged.judgements),
            "raters": dict(merged.raters),
            "verdicts": len(merged.verdicts),
            "overlap": merged.overlap,
            "alpha": dict(merged.alphas),
            "written": written,
        }
    )


def _print(merged: Merged, output: Output) -> None:
    output.table(("rater", "labels"), list(merged.raters.items()))
    output.say(
        f"{len(merged.verdicts)} answers or pairs labelled, {merged.overlap} by several people"
    )
    for kind, alpha in merged.alphas.items():
        agreement = "unknown" if alpha is None else shown(alpha)
        output.say(f"agreement on {kind!r}: Krippendorff's alpha {agreement}")


def _write_pairs(path: Path, labelled: Sequence[Pair]) -> int:
    from orbiter.train.formats.trl_preference import pair_row
    from orbiter.train.storage import write_file

    if not labelled:
        raise DataError("no pair has a better answer: nothing was labelled, or all are undecided")
    rows = [json.dumps(pair_row(pair), ensure_ascii=False) + "\n" for pair in labelled]
    write_file(path, "".join(rows).encode())
    return len(rows)
