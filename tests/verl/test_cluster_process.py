from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from orbiter.train.errors import (
    CallbackError,
    ConfigError,
    MissingExtraError,
    StorageError,
    TrainingError,
)
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.verl.cluster.follow import Tail, first_fault, groups_of
from orbiter.train.verl.cluster.process import Child, ask, last_lines

STUBBORN = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


def child(code: str, folder: Path, stdin: str = "") -> Child:
    return Child(
        [sys.executable, "-c", code],
        log=folder / "log",
        folder=folder,
        environment=os.environ,
        stdin=stdin,
    )


def alive(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False


async def test_a_childs_output_and_code_are_there_behind_its_end(tmp_path: Path) -> None:
    async with child("print(input()); raise SystemExit(3)", tmp_path, "hello\n") as process:
        assert await process.wait(60)
    assert process.code == 3
    assert process.last_lines() == "hello"


async def test_a_wait_ends_while_the_child_goes_on(tmp_path: Path) -> None:
    async with child("import time; time.sleep(600)", tmp_path) as process:
        assert not await process.wait(0.05)
        assert process.code is None
    assert process.code == -signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
async def test_what_does_not_end_when_told_is_ended_with_all_it_started(tmp_path: Path) -> None:
    async with child(STUBBORN, tmp_path) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            await asyncio.sleep(0.02)
            if (tmp_path / "log").read_text().endswith("\n"):
                break
        grandchild = int((tmp_path / "log").read_text())
        assert alive(grandchild)
        await process.stop(0.2)
    assert process.code == -signal.SIGKILL
    for _ in range(200):
        if not alive(grandchild):
            break
        await asyncio.sleep(0.02)
    assert not alive(grandchild)


async def test_a_cancelled_wait_leaves_no_child_behind(tmp_path: Path) -> None:
    started: list[Child] = []

    async def run() -> None:
        async with child("import time; time.sleep(600)", tmp_path) as process:
            started.append(process)
            await process.wait(600)

    task = asyncio.create_task(run())
    for _ in range(1000):
        if started:
            break
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started[0].code is not None


async def test_a_question_without_an_answer_has_an_end() -> None:
    with pytest.raises(TrainingError, match=r"gave no answer within 0\.2 s"):
        await ask(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            environment=os.environ,
            stdin="",
            seconds=0.2,
        )


def test_the_last_lines_leave_the_chatter_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n" + "x FutureWarning: y\n" * 50 + "\n\nlast\n")
    assert last_lines(log) == "first\nlast"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    assert last_lines(log).splitlines()[0] == "line 70"
    assert last_lines(tmp_path / "absent") == "(no output)"


def test_metrics_are_read_as_they_come_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert list(tail.new()) == []
    path.write_bytes(b'{"step": 1, "data": {"a": 1}}\n{"step": 2, "da')
    assert [step.number for step in tail.new()] == [1]
    assert list(tail.new()) == []
    with path.open("ab") as file:
        file.write(b'ta": {"a": 2}}\n')
    assert [(step.number, step.data["a"]) for step in tail.new()] == [(2, 2)]


def test_the_first_fault_is_the_one_that_is_told(tmp_path: Path) -> None:
    assert first_fault(tmp_path / "faults") is None
    for when, name in ((2, "a"), (1, "b")):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"fault": name}))
        os.utime(path, ns=(when, when))
    assert first_fault(tmp_path) == "b"


def test_samples_come_in_groups_one_a_prompt(tmp_path: Path) -> None:
    dump = tmp_path / "3.jsonl"
    said = [("u1_0_0", "p", "a", 0.5), ("u1_1_0", "p", "b", 1.0), ("u2_0_0", "q", "c", 0.0)]
    dump.write_text(
        "".join(
            json.dumps({"uid": uid, "input": asked, "output": given, "score": score}) + "\n"
            for uid, asked, given, score in said
        )
    )
    first, second = groups_of(dump)
    assert first["outputs"] == [{"text": "a", "reward": 0.5}, {"text": "b", "reward": 1.0}]
    assert second["prompt"] == "q"


def vowels(output: str) -> float:
    return float(len(output))


def trainer(folder: Path, reward: object = vowels, **settings: object) -> VeRLTrainer:
    config = VeRLConfig(backend="verl", device="cpu", model="tiny", output_dir=folder, **settings)  # type: ignore[arg-type] # as a user types them
    return VeRLTrainer(config, [RewardSpec("vowels", 1.0, reward)])  # type: ignore[arg-type] # likewise


PROMPTS = ["Sing."] * 8
PYTHON_WITHOUT_VERL = (
    "#!{python}\n"
    "import json, sys\n"
    "sys.stdin.read()\n"
    "print(json.dumps({{'version': {version!r}, 'devices': 0, 'refusals': [], 'composed': {{}},"
    " 'missing': {{}}, 'notes': []}}))\n"
)


def interpreter(folder: Path, version: str | None) -> Path:
    """A program that answers a check as an interpreter with this version of verl would."""
    path = folder / "python-with-verl"
    path.write_text(PYTHON_WITHOUT_VERL.format(python=sys.executable, version=version))
    path.chmod(0o755)
    return path


async def test_an_interpreter_without_verl_says_what_to_install(tmp_path: Path) -> None:
    python = interpreter(tmp_path, None)
    with pytest.raises(MissingExtraError, match="verl is not installed for") as missing:
        await trainer(tmp_path / "run", verl_python=python).train(PROMPTS)
    said = str(missing.value)
    assert f"{python} -m pip install -c constraints-verl.txt 'orbiter-train[verl]'" in said
    assert "verl_python=" in said
    assert not (tmp_path / "run").exists()


async def test_a_verl_that_was_never_tried_is_refused(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "0.10.0")
    with pytest.raises(
        ConfigError, match=r"verl 0\.10\.0 was never tested .* knows .* verl 0\.9\.1"
    ):
        await trainer(tmp_path / "run", verl_python=python).plan(PROMPTS)


async def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="verl_python='nowhere' cannot be run"):
        await trainer(tmp_path, verl_python="nowhere").plan(PROMPTS)


async def test_a_reward_that_cannot_travel_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    run = trainer(tmp_path / "run", reward=lambda output: float(len(output)))
    with pytest.raises(ConfigError, match="reward 'vowels' cannot be sent to verl: a lambda"):
        await run.train(PROMPTS)
    assert not (tmp_path / "run").exists()


async def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(StorageError, match="holds a run already; set resume=True"):
        await trainer(tmp_path).train(PROMPTS)


async def test_a_plan_has_its_notes_and_its_files(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "0.9.1")
    run = trainer(
        tmp_path / "run", verl_python=python, algorithm="ppo", batch_size=3, warmup_steps=2
    )
    plan = await run.plan(PROMPTS)
    assert plan.steps == 2
    said = str(plan)
    for words in ("2 of 8 prompts are left out", "vf_coef is not used", "warmup_steps counts"):
        assert words in said
    assert str(tmp_path / "run/verl/orbiter_rewards.py") in plan.files
    assert not (tmp_path / "run").exists()


async def test_a_plan_for_this_process_counts_steps_updates_and_tokens() -> None:
    config = VeRLConfig(
        model="tiny", epochs=3, batch_size=4, group_size=2, minibatch_size=4, ppo_epochs=2
    )
    run = VeRLTrainer(config, [RewardSpec("a", 1.0, vowels)], eval_dataset=PROMPTS[:2])
    plan = await run.plan(PROMPTS)
    assert (plan.method, plan.items, plan.held_out) == ("GRPO", 8, 2)
    assert (plan.steps, plan.updates) == (6, 24), "3 x 2 steps, each of 2 x 2 updates"
    assert plan.tokens > 8 * 2 * 64 * 3
    assert plan.memory_bytes > 1 << 20


JOB = """#!{python}
import json, os, pathlib, sys, time
if "orbiter.train.verl.cluster.inside.check" in sys.argv:
    sys.stdin.read()
    print(json.dumps({{"version": "0.9.1", "devices": 0, "refusals": [], "composed": {{}},
                       "missing": {{}}, "notes": []}}))
elif "verl.trainer.main_ppo" in sys.argv:
    print("the job begins", flush=True)
    with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as file:
        for step in range(1, {steps} + 1):
            data = {{"critic/score/mean": step / 10, "critic/advantages/min": {low},
                     "critic/advantages/max": {high}, "timing_s/step": 0.1}}
            file.write(json.dumps({{"step": step, "data": data}}) + "\\n")
            file.flush()
    {end}
"""


def job(folder: Path, *, steps: int, end: str, low: float = -1.0, high: float = 1.0) -> Path:
    """A program that stands for verl: takes steps, then ends as it is told to."""
    path = folder / "verl-python"
    path.write_text(JOB.format(python=sys.executable, steps=steps, end=end, low=low, high=high))
    path.chmod(0o755)
    return path


async def test_a_job_that_ends_early_shows_its_code_its_step_and_its_last_lines(
    tmp_path: Path,
) -> None:
    python = job(tmp_path, steps=2, end='print("the reason"); sys.exit(7)')
    run = trainer(tmp_path / "run", verl_python=python, batch_size=2)
    with pytest.raises(TrainingError, match="verl ended with code 7 after step 2 of 4") as ended:
        await run.train(PROMPTS)
    assert "the job begins\nthe reason" in str(ended.value)
    assert [row["reward"] for row in run.history] == [0.1, 0.2]


async def test_a_job_that_stands_still_is_stopped_with_its_last_lines(tmp_path: Path) -> None:
    python = job(tmp_path, steps=1, end="time.sleep(600)")
    run = trainer(tmp_path / "run", verl_python=python, batch_size=2, step_timeout_seconds=3)
    with pytest.raises(TrainingError, match=r"no step ended within .*after step [01]\.") as still:
        await run.train(PROMPTS)
    assert "the job begins" in str(still.value)


async def test_a_fault_in_a_worker_ends_the_job_and_is_named(tmp_path: Path) -> None:
    leave = (
        "pathlib.Path('faults').mkdir(); "
        "pathlib.Path('faults/1.json').write_text(json.dumps({'fault': 'reward x: bad'})); "
        "time.sleep(600)"
    )
    run = trainer(tmp_path / "run", verl_python=job(tmp_path, steps=1, end=leave), batch_size=2)
    with pytest.raises(CallbackError, match="in verl's worker, reward x: bad"):
        await run.train(PROMPTS)


async def test_a_run_that_has_nothing_to_learn_from_is_ended(tmp_path: Path) -> None:
    python = job(tmp_path, steps=4, end="time.sleep(600)", low=0, high=0)
    run = trainer(tmp_path / "run", verl_python=python, batch_size=2, max_flat_steps=3)
    with pytest.raises(TrainingError, match="nothing can be learned: in all 3 steps"):
        await run.train(PROMPTS)
