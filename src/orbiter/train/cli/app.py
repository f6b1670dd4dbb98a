"""`orbiter-train`: which commands there are; each is imported when it is called, and not before.

Left out: what they do. Each stands in a file of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from orbiter.train.cli.exits import Code, report_error

PROGRAM = "orbiter-train"

COMMANDS = {
    "init": ("init", "Make a project to start from: config, reward and data, all commented."),
    "doctor": ("doctor", "Say what is installed, what is missing, and what to do about it."),
    "data": ("data", "Look at a data set: check, stats, dedup, split."),
    "convert": ("convert", "Turn a file of one format into another."),
    "synth": ("synth", "Make more data: from templates, your own code or a language model."),
    "sft": ("train", "Improve a model by imitation."),
    "train": ("train", "Improve a model by reward, with GRPO or PPO."),
    "evolve": ("evolve", "Improve a prompt, or whatever else can be scored and varied."),
    "eval": ("evaluate", "Say how good a model is, with an interval."),
    "generate": ("generate", "Let a model answer."),
    "serve": ("serve", "Put a model behind an OpenAI-compatible endpoint on this machine."),
    "report": ("report", "Write a run's page, or follow a run while it goes on."),
    "settings": ("list_settings", "List the settings of a command, with defaults and ranges."),
    "runs": ("runs", "List runs, compare two of them, go on with one."),
    "proxy": ("proxy", "Stand between an agent and its model, and capture what they say."),
}
"""For each command the module beside this one that has it, and what it does in a sentence."""


class Lazy(TyperGroup):
    """A group whose commands are imported by name, so that `--help` costs nothing."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        """Return all names, in the order of a project's days."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        """Return what the help page needs to know of a command; it cannot be run."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, short_help=COMMANDS[cmd_name][1], rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was called, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it without a word from Python."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            raise typer.Exit(Code.INTERRUPTED) from None


def load(name: str) -> Any:
    """Import a command."""
    module = import_module(f"orbiter.train.cli.{COMMANDS[name][0]}")
    return typer.main.get_command(getattr(module, f"{name}_app"))


app = typer.Typer(
    cls=Lazy,
    rich_markup_mode=None,  # rich's own help takes three times as long to load as all the rest
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and end.", callback=_tell_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[  # main() takes it out of the line, wherever it stands
        bool, typer.Option("--debug", help="Show Python's own story of an error.")
    ] = False,
) -> None:
    """From an agent's traces to a better agent.

    Begin with: orbiter-train init my-agent
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: the codes are those of `Code`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    told = [word for word in given if word != "--debug"]
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        stream=sys.stderr,
        force=True,
    )
    try:
        typer.main.get_command(app)(args=told, prog_name=PROGRAM)
    except BrokenPipeError:  # whoever read our output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Code.OK)
    except Exception as error:  # the last door: whatever it is, one line and a code
        if debug:
            raise
        sys.exit(report_error(error, as_json="--json" in told))
