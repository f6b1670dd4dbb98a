"""The `orbiter-train` command: lists the subcommands and imports each only when it is called.

Each subcommand is in its own file.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from orbiter.train.cli.exits import ExitCode, report_error
from orbiter.train.progress import is_plain

PROGRAM = "orbiter-train"

COMMANDS = {
    "init": ("init", "Create a starter project: config, reward and data, all commented."),
    "doctor": ("doctor", "Check what is installed and what is missing, and how to fix it."),
    "data": (
        "items.data",
        "Inspect and improve a dataset: check, stats, show, filter, merge, dedup, split.",
    ),
    "convert": ("items.convert", "Convert a file from one format to another."),
    "synth": ("synth", "Generate data from templates, your own code or a language model."),
    "sft": ("train", "Improve a model by imitation."),
    "train": ("train", "Improve a model by reward, with GRPO or PPO."),
    "offline": ("train", "Improve a model by logged episodes, without running anything."),
    "prefer": ("train", "Improve a model by preferences: DPO, IPO, KTO, ORPO or SimPO."),
    "reward-model": ("train", "Train a reward model on preferences: it scores answers."),
    "evolve": ("evolve", "Improve a prompt, or anything else that can be scored and varied."),
    "eval": ("evaluate", "Measure how good a model is, with a confidence interval."),
    "compare": ("ship.compare", "Compare two models, and say whether the new one may be shipped."),
    "label": ("label", "Label answers on a page in the browser."),
    "labels": ("label", "Merge the labels of several people, and write training data."),
    "generate": ("generate", "Answer prompts with a model."),
    "serve": ("serve", "Serve a model at an OpenAI-compatible endpoint on this machine."),
    "export": ("ship.export", "Write a model as a GGUF file for llama.cpp and Ollama."),
    "report": ("report", "Write the report page of a run, or follow a run while it trains."),
    "settings": ("settings.listing", "List the settings of a command, with defaults and ranges."),
    "runs": ("runs", "List runs, show one, compare two, resume one."),
    "proxy": ("proxy", "Run a proxy between an agent and its model that captures every call."),
}
"""The module of each command, which defines `NAME_app`, and one sentence for the help page.

A `-` in the name of a command is a `_` in the module."""


class Lazy(TyperGroup):
    """A group whose commands are imported when they are called, so that `--help` is fast."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        """Return all names, in the order in which a project needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        """Return a placeholder with the text for the help page; it cannot be run."""
        if cmd_name not in COMMANDS:
            return None
        # Importing all commands for one line each would make the help page slow.
        return TyperCommand(cmd_name, short_help=COMMANDS[cmd_name][1], rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that was called."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C and a closed pipe end it without a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
            _discard_output()
            raise typer.Exit(ExitCode.OK) from None


def load(name: str) -> Any:
    """Import a command."""
    module = import_module(f"orbiter.train.cli.{COMMANDS[name][0]}")
    return typer.main.get_command(getattr(module, f"{name.replace('-', '_')}_app"))


app = typer.Typer(
    cls=Lazy,
    rich_markup_mode=None,  # rich's help takes three times as long to load as everything else
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[  # main() removes it wherever it is on the line
        bool, typer.Option("--debug", help="Show the Python traceback of an error.")
    ] = False,
) -> None:
    """Turn an agent's traces into a better agent.

    Start with: orbiter-train init my-agent
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code of `ExitCode`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # By hand: a user adds it to the end of a line that failed, where the root's options are not
    # read.
    debug = "--debug" in given
    words = [word for word in given if word != "--debug"]
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        stream=sys.stderr,
        force=True,
    )
    _set_up_streams()
    try:
        typer.main.get_command(app)(args=words, prog_name=PROGRAM)
    except SystemExit:
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # Click's mark of a closed pipe
            sys.exit(ExitCode.OK)
        _flush()
        raise
    except Exception as error:  # the outermost handler: any error becomes one line and a code
        if debug:
            raise
        code = report_error(error, as_json="--json" in words)
        _flush()
        sys.exit(code)


def _set_up_streams() -> None:
    """Make output never fail on a character, and show progress as lines if it is piped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests may have replaced it
            # A model may answer with characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    level = logging.INFO if is_plain(sys.stderr) else logging.NOTSET
    logging.getLogger("orbiter.train.progress").setLevel(level)


def _flush() -> None:
    """Flush the output; a closed pipe is not an error, a full disk is one."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(ExitCode.OK)
    except OSError as error:
        _discard_output()
        sys.exit(report_error(error, as_json=False))


def _discard_output() -> None:
    """Discard further output, so that Python does not complain at exit."""
    # Python flushes at exit once more, and would complain about the closed pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
