"""A killed run goes on where it was: to the same data, asking for nothing that was answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from typing_extensions import override

from orbiter.train.errors import ConfigError, StorageError
from orbiter.train.synthesis import (
    DataSynthesiser,
    SynthesisConfig,
    SynthesisContext,
    SynthesisPipeline,
    SynthesisResult,
    TemplateSynthesiser,
)
from orbiter.train.trajectory import TrajectoryItem
from tests.children import started_child
from tests.journals import without_checksum
from tests.synthesis import journal_worker

KILLS = 40


class Numbered(DataSynthesiser):
    """Makes items numbered by the offset, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    @override
    async def generate(
        self, count: int, *, context: SynthesisContext | None = None
    ) -> list[TrajectoryItem]:
        assert context is not None
        self.asked.append(context.offset)
        context.spend(1.0)
        return [
            TrajectoryItem(f"tell {n} about {n * 3} and {n % 4}", "", metadata={"t": (n, n)})
            for n in range(context.offset, context.offset + count)
        ]


def pipeline(folder: Path | None, step: DataSynthesiser, **settings: object) -> SynthesisPipeline:
    given = {"target_size": 60, "batch_size": 4, "min_score": 0.3, **settings}
    config = SynthesisConfig(**given)  # type: ignore[arg-type]  # settings of several types
    return SynthesisPipeline(
        config, scorer=lambda item: len(item.state) % 3 / 3, run_dir=folder
    ).add_step(step)


async def stopped_early(folder: Path) -> tuple[SynthesisResult, Numbered]:
    step = Numbered()
    stopped = pipeline(folder, step)
    place = 0
    async for _ in stopped.stream():
        place += 1
        if place == 10:
            stopped.stop()
    result = stopped.result
    assert result is not None
    assert result.stop_reason == "cancelled"
    assert 0 < len(result.items) < 60
    return result, step


async def test_a_stopped_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = await pipeline(tmp_path / "whole", Numbered()).run()
    _, before = await stopped_early(tmp_path / "parts")
    after = Numbered()
    resumed = await pipeline(tmp_path / "parts", after).run()
    assert resumed == whole
    again = Counter(before.asked) & Counter(after.asked)
    assert sum(again.values()) <= 4, "only what was under way is asked again"
    assert resumed.items[0].metadata["t"] == [0, 0], "as a file gives it back, resumed or not"


async def test_a_finished_run_is_read_and_not_made_again(tmp_path: Path) -> None:
    scored: list[TrajectoryItem] = []

    def scorer(item: TrajectoryItem) -> float:
        scored.append(item)
        return 0.5

    config = SynthesisConfig(target_size=20, batch_size=4, min_score=0.3)
    step = Numbered()
    pipeline = SynthesisPipeline(config, scorer=scorer, run_dir=tmp_path).add_step(step)
    first = await pipeline.run()
    asked = list(step.asked)
    assert len(scored) == first.generated_count
    assert await pipeline.run() == first
    assert (step.asked, len(scored)) == (asked, first.generated_count)


async def test_a_journal_does_not_change_the_data(tmp_path: Path) -> None:
    template = TemplateSynthesiser(["say {a} to {b} now"], {"a": range(9), "b": range(9)})
    assert (await pipeline(tmp_path, template).run()) == (await pipeline(None, template).run())


async def test_a_greater_budget_goes_on_where_the_money_was_gone(tmp_path: Path) -> None:
    poor = await pipeline(tmp_path, Numbered(), max_cost=3.0, concurrency=1).run()
    assert (poor.stop_reason, poor.cost) == ("budget", 3.0)
    broke = Numbered()
    assert (await pipeline(tmp_path, broke, max_cost=3.0).run()).items == poor.items
    assert broke.asked == []
    rich = await pipeline(tmp_path, Numbered(), max_cost=1000.0).run()
    assert rich.stop_reason == "target"
    assert list(rich.items[: len(poor.items)]) == list(poor.items)
    assert rich.cost == (await pipeline(None, Numbered()).run()).cost


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"min_score": 0.4}, r"min_score was 0.3, is 0.4"),
        ({"seed": 1}, "seed"),
        ({"batch_size": 5}, "batch_size"),
        ({"dedup_threshold": None}, "dedup_threshold"),
    ],
)
async def test_other_settings_are_another_run(
    changed: dict[str, object], named: str, tmp_path: Path
) -> None:
    await stopped_early(tmp_path)
    with pytest.raises(ConfigError, match=named):
        await pipeline(tmp_path, Numbered(), **changed).run()
    await pipeline(tmp_path, Numbered(), concurrency=9).run()


async def test_other_steps_and_other_seeds_are_another_run(tmp_path: Path) -> None:
    await stopped_early(tmp_path)
    with pytest.raises(ConfigError, match="step 1 was 'Numbered"):
        await pipeline(tmp_path, TemplateSynthesiser(["x"])).run()
    with pytest.raises(ConfigError, match="seeds"):
        await pipeline(tmp_path, Numbered()).run([TrajectoryItem("s", "a")])


async def test_a_batch_is_what_an_earlier_process_asked_for(tmp_path: Path) -> None:
    await pipeline(tmp_path, Numbered()).run()
    path = tmp_path / "synthesis.jsonl"
    records = [json.loads(without_checksum(line)) for line in path.read_bytes().splitlines()]
    shorter = next(r for r in records if r.get("batch") == 0 and r["type"] == "made")
    shorter |= {"asked": 3, "candidates": shorter["candidates"][:3], "by_step": [3]}
    kept = [r for r in records if r.get("batch") != 0]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*kept, shorter]))
    result = await pipeline(tmp_path, Numbered()).run()
    assert (len(result.items), result.stop_reason) == (60, "target")


@pytest.mark.parametrize("content", ["{}\n", "nonsense\n", '{"type":"made"}\n'])
async def test_a_file_that_is_no_journal_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "synthesis.jsonl").write_text(content)
    with pytest.raises(StorageError, match=r"synthesis.jsonl:1"):
        await pipeline(tmp_path, Numbered()).run()


async def test_an_unfinished_last_line_is_asked_again(tmp_path: Path) -> None:
    whole = await pipeline(tmp_path, Numbered()).run()
    path = tmp_path / "synthesis.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert await pipeline(tmp_path, Numbered()).run() == whole


async def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    async with contextlib.aclosing(pipeline(tmp_path, Numbered()).stream()) as running:
        await anext(running)
        with pytest.raises(StorageError, match="held by process"):
            await pipeline(tmp_path, Numbered()).run()
    assert len((await pipeline(tmp_path, Numbered()).run()).items) == 60


def answered(folder: Path) -> set[str]:
    """Return what the journal holds an answer to, in the words of the worker."""
    path = folder / "synthesis.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    made = {r["batch"]: r for r in records if r["type"] == "made"}
    numbers = {
        (batch, place): candidate["metadata"]["n"]
        for batch, record in made.items()
        for place, candidate in enumerate(record["candidates"])
    }
    scores = {f"score {numbers[r['batch'], r['place']]}" for r in records if r["type"] == "scored"}
    return scores | {
        f"batch {record['candidates'][0]['metadata']['n']}" for record in made.values()
    }


@pytest.mark.slow
def test_a_run_killed_at_forty_points_ends_with_the_same_data(tmp_path: Path) -> None:
    whole = asyncio.run(journal_worker.run(str(tmp_path / "whole"), str(tmp_path / "whole.txt")))
    asked, folder = tmp_path / "asked.txt", tmp_path / "killed"
    command = [sys.executable, journal_worker.__file__, str(folder), str(asked)]
    rng = random.Random(0)
    killed, seen, twice = 0, 0, 0
    while killed < KILLS:
        known = answered(folder)
        with started_child(command, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            time.sleep(rng.random() * 0.05)
            worker.send_signal(signal.SIGKILL)
        assert worker.returncode == -signal.SIGKILL, "the run ended before it was killed"
        killed += 1
        lines = asked.read_text().splitlines() if asked.exists() else []
        twice += sum(line in known for line in lines[seen:])
        seen = len(lines)
    known = answered(folder)
    result = asyncio.run(journal_worker.run(str(folder), str(asked)))
    lines = asked.read_text().splitlines()
    twice += sum(line in known for line in lines[seen:])
    assert twice == 0, "what was answered is never asked again"
    assert result == whole
    batches = [line for line in lines if line.startswith("batch")]
    assert len(batches) - len(set(batches)) <= 4 * KILLS, "only what was under way"
    assert len(set(batches)) == len(
        set((tmp_path / "whole.txt").read_text().split("\n")) & set(batches)
    )
