"""`orbiter-train generate`: answer prompts with a model."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.errors import DataError

generate_app = typer.Typer(rich_markup_mode=None)


@generate_app.command()
def generate(
    prompts: Annotated[
        list[str], typer.Argument(help='The prompts; "-" reads one prompt per line of the input.')
    ],
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, a hub name, smollm2-135m or tiny.")
    ] = "smollm2-135m",
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum length of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    samples: Annotated[int, typer.Option(help="Answers per prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Answer prompts with a model."""
    from orbiter.train.verl import VeRLConfig, VeRLTrainer

    asked = _read(prompts)
    config = VeRLConfig(
        model=model, system_prompt=system, max_response_length=max_tokens, device=device
    )
    answers = asyncio.run(
        VeRLTrainer(config).generate(asked, temperature=temperature, samples=samples, seed=seed)
    )
    output = Output(as_json=as_json)
    groups = [answers[at : at + samples] for at in range(0, len(answers), samples)]
    for prompt, group in zip(asked, groups, strict=True):
        for answer in group:
            output.say(f"{prompt}\t{answer}" if len(asked) > 1 else answer)
    records = [
        {"prompt": prompt, "answers": group} for prompt, group in zip(asked, groups, strict=True)
    ]
    output.result({"model": model, "answers": records})


def _read(prompts: list[str]) -> list[str]:
    if prompts != ["-"]:
        return prompts
    lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise DataError("there is nothing to answer: the input is empty")
    return lines
