"""Worker processes: they answer, they are killed when given up, and they say what went wrong."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from orbiter.train.errors import CallbackError, ConfigError
from orbiter.train.evolution import (
    CallableEvolution,
    Context,
    EvolutionConfig,
    EvolutionPipeline,
    InProcess,
)


def where(candidate: str) -> tuple[str, int]:
    return candidate, os.getpid()


def obey(candidate: str) -> float:
    """Hang, end, raise or count, as the candidate says; a hanging one leaves its process's id."""
    if candidate.startswith("hang "):
        Path(candidate.removeprefix("hang ")).write_text(str(os.getpid()))
        while True:
            time.sleep(0.01)
    if candidate == "end":
        os._exit(7)
    if candidate == "raise":
        raise ZeroDivisionError("seven")
    return float(len(candidate))


def wait_for(file: Path) -> None:
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def unsendable(candidate: str) -> object:
    return lambda: candidate


async def test_answers_come_from_other_processes_that_are_used_again() -> None:
    with InProcess(where, workers=1) as call:
        first, second = await call("a"), await call("b")
    assert (first[0], second[0]) == ("a", "b")
    assert first[1] == second[1] != os.getpid()


async def test_a_call_that_is_given_up_ends_its_process(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with InProcess(obey, workers=1) as call:
        hanging = asyncio.create_task(call(f"hang {told}"))
        await asyncio.to_thread(wait_for, told)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert not alive(int(told.read_text()))
        assert await call("four") == 4.0


async def test_an_evolution_with_a_hanging_candidate_goes_on_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    told = tmp_path / "pid"

    def longer(candidate: str, context: Context) -> str:
        return candidate + "x"

    with InProcess(obey, workers=2) as evaluate:
        config = EvolutionConfig(epochs=3, population_size=3, timeout=8.0, concurrency=2)
        strategy = CallableEvolution(evaluate, longer)
        result = await EvolutionPipeline(config, strategy).run(["a", f"hang {told}", "raise"])
    assert result.best_score >= 3.0
    assert result.failures >= 2
    assert any("8 s" in (m.error or "") for m in result.members)
    assert any("ZeroDivisionError: seven" in (m.error or "") for m in result.members)
    assert not alive(int(told.read_text()))


async def test_a_process_that_ends_by_itself_is_named_and_replaced() -> None:
    with InProcess(obey, workers=1) as call:
        with pytest.raises(CallbackError, match="exit code 7"):
            await call("end")
        assert await call("abc") == 3.0


async def test_an_answer_that_cannot_travel_is_an_error_and_the_worker_lives() -> None:
    with InProcess(unsendable, workers=1) as call:
        for _ in range(2):
            with pytest.raises(CallbackError, match="cannot be sent back"):
                await call("a")


def test_a_function_that_no_process_could_find_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="top of a module"):
        InProcess(lambda candidate: f"{candidate}!")
    with pytest.raises(ConfigError, match="workers"):
        InProcess(obey, workers=0)
