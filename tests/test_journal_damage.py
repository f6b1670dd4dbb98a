"""A journal that was changed behind our back is an error, or has lost its unfinished end only."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orbiter.train import TrajectoryDataset, TrajectoryItem
from orbiter.train.errors import StorageError
from orbiter.train.evolution import EvolutionConfig, EvolutionPipeline
from orbiter.train.runlog import read_run
from orbiter.train.synthesis import SynthesisConfig, SynthesisPipeline, TemplateSynthesiser
from tests.evolution.problems import OneMax, population
from tests.report.folders import training

Lines = list[bytes]
ATTEMPTS = 60


def run_folder(folder: Path) -> list[object]:
    if not (folder / "metrics.jsonl").exists():
        training(folder, steps=12)
    run = read_run(folder)
    return [run.config, *run.metrics]


def trajectories(folder: Path) -> list[object]:
    with TrajectoryDataset(path=folder / "journal.jsonl") as dataset:
        if not len(dataset):
            for i in range(12):
                dataset.capture(TrajectoryItem(f"s{i}", f"a{i}", reward=float(i), episode_id="e"))
        return list(dataset)


def synthesis(folder: Path) -> list[object]:
    templates = TemplateSynthesiser(
        ["Tell {x} about {y}."], {"x": list("abcdef"), "y": list("ghijkl")}
    )
    config = SynthesisConfig(target_size=12, batch_size=2, dedup_threshold=None)
    pipeline = SynthesisPipeline(config, run_dir=folder, scorer=lambda _: 1.0).add_step(templates)
    result = asyncio.run(pipeline.run())
    return [item.state for item in result.items]


def evolution(folder: Path) -> list[object]:
    config = EvolutionConfig(epochs=3, population_size=6, seed=5, run_dir=folder)
    result = asyncio.run(EvolutionPipeline(config, OneMax()).run(population(6)))
    return [(m.name, list(m.candidate), m.score) for m in result.members]


JOURNALS: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "run": (run_folder, "metrics.jsonl"),
    "trajectories": (trajectories, "journal.jsonl"),
    "synthesis": (synthesis, "synthesis.jsonl"),
    "evolution": (evolution, "evolution.jsonl"),
}


def doubled(lines: Lines, draw: random.Random) -> Lines:
    place = draw.randrange(len(lines))
    return [*lines[: place + 1], *lines[place:]]


def doubled_elsewhere(lines: Lines, draw: random.Random) -> Lines:
    line = draw.choice(lines)
    place = draw.randrange(len(lines))
    return [*lines[:place], line, *lines[place:]]


def swapped(lines: Lines, draw: random.Random) -> Lines:
    first, second = sorted(draw.sample(range(len(lines)), 2))
    lines = [*lines]
    lines[first], lines[second] = lines[second], lines[first]
    return lines


def removed(lines: Lines, draw: random.Random) -> Lines:
    place = draw.randrange(len(lines) - 1)  # the last one may be missing
    return [*lines[:place], *lines[place + 1 :]]


def flipped(lines: Lines, draw: random.Random) -> Lines:
    place = draw.randrange(len(lines))
    line = bytearray(lines[place])
    line[draw.randrange(len(line) - 1)] ^= 1 << draw.randrange(8)
    return [*lines[:place], bytes(line), *lines[place + 1 :]]


def emptied(lines: Lines, draw: random.Random) -> Lines:
    place = draw.randrange(len(lines) - 1)
    return [*lines[:place], b"\n", *lines[place + 1 :]]


def zeroed(lines: Lines, draw: random.Random) -> Lines:
    place = draw.randrange(len(lines) - 1)
    return [*lines[:place], b"\0" * (len(lines[place]) - 1) + b"\n", *lines[place + 1 :]]


def shortened(lines: Lines, draw: random.Random) -> Lines:
    place = draw.randrange(len(lines) - 1)
    cut = lines[place][: draw.randrange(len(lines[place]) - 1)] + b"\n"
    return [*lines[:place], cut, *lines[place + 1 :]]


def foreign(lines: Lines, draw: random.Random) -> Lines:
    place = draw.randrange(len(lines))
    return [*lines[:place], b'{"step": 1, "loss": 0.5}\n', *lines[place:]]


CHANGES = (
    doubled, doubled_elsewhere, swapped, removed, flipped, emptied, zeroed, shortened, foreign,
)  # fmt: skip


def outcome(read: Callable[[Path], list[object]], folder: Path) -> list[object] | str:
    """Return what is read, or the error's message."""
    try:
        return read(folder)
    except StorageError as error:
        return str(error)


@pytest.mark.parametrize("kind", JOURNALS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_journal_is_an_error_or_lost_its_end(
    tmp_path: Path, kind: str, change: Callable[[Lines, random.Random], Lines]
) -> None:
    read, name = JOURNALS[kind]
    sound = read(tmp_path / "sound")
    lines = (tmp_path / "sound" / name).read_bytes().splitlines(keepends=True)
    draw = random.Random(0)
    refused = 0
    for attempt in range(ATTEMPTS if kind in ("run", "trajectories") else ATTEMPTS // 6):
        folder = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "sound", folder)
        damaged = change(lines, draw)
        if damaged == lines:
            continue
        (folder / name).write_bytes(b"".join(damaged))
        found = outcome(read, folder)
        if isinstance(found, str):
            assert str(folder / name) in found
            refused += 1
        else:
            assert found == sound[: len(found)]
        shutil.rmtree(folder)
    assert refused
