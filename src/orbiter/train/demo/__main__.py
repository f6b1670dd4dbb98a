"""`python -m orbiter.train.demo`: run the main job; `make demo` calls this.

Options: --quick (every stage within seconds, on a model too small to learn the task), --control
(give SFT the seconds that GRPO took, to compare), --seed N, --minutes M, --steps N, --out FOLDER.
A run that was interrupted is continued by the same command.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from orbiter.train.demo.account import Account
from orbiter.train.demo.outcome import DemoOutcome
from orbiter.train.demo.pipeline import open_run, run_demo
from orbiter.train.demo.plan import QUICK, DemoPlan
from orbiter.train.demo.state import unfinished
from orbiter.train.errors import TrainError
from orbiter.train.interrupts import TwoStepInterrupt

INTERRUPTED = 128 + signal.SIGINT
"""The exit code that a shell expects of a process ended by Ctrl-C."""
STOPPING = "stopping after the current step; press Ctrl-C again to end the run at once"
RUNS = Path("runs")


def main() -> int:
    """Run the demo.

    Returns:
        0; 1 if something that it needs is missing, with what to do about it; 130 after Ctrl-C,
        with how to continue.
    """
    options = _parser().parse_args()
    plan = _plan(options)
    folder = options.out or unfinished(plan, RUNS)
    account = Account(DemoOutcome())
    if folder is None:
        folder = RUNS / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    elif folder.exists() and any(folder.iterdir()):
        account.console.print(f"continuing {folder}", markup=False, soft_wrap=True)
    try:
        finished = asyncio.run(_run(plan, folder, account))
    except TrainError as error:
        account.console.print(f"error: {error}", style="red", markup=False)
        return 1
    if not finished:
        command = shlex.join(["python", "-m", "orbiter.train.demo", *sys.argv[1:]])
        account.console.print(
            f"interrupted: {folder} keeps what is finished; `make demo`, or `{command}`, continues",
            markup=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    account.summary()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orbiter.train.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few requests")
    parser.add_argument("--control", action="store_true", help="further SFT, to compare with")
    parser.add_argument("--seed", type=int, default=0, help="of the split, batches and samples")
    parser.add_argument("--minutes", type=float, help="time budget, downloads apart")
    parser.add_argument("--steps", type=int, help="GRPO steps, however long they take")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], help="arithmetic")
    parser.add_argument("--out", type=Path, help="folder of the run; runs/demo-<time> unless given")
    return parser


def _plan(options: argparse.Namespace) -> DemoPlan:
    plan = replace(
        QUICK if options.quick else DemoPlan(), control=options.control, seed=options.seed
    )
    if options.minutes is not None:
        plan = replace(plan, minutes=options.minutes)
    if options.dtype is not None:
        plan = replace(plan, dtype=options.dtype)
    if options.steps is not None:
        plan = replace(plan, grpo_steps=options.steps, minutes=1e6)
    return plan


async def _run(plan: DemoPlan, folder: Path, account: Account) -> bool:
    """Run the demo; return whether it finished.

    The first Ctrl-C lets the current step finish and writes a checkpoint; the second one ends the
    process at once.
    """
    run = open_run(plan, folder, account)
    loop, job = asyncio.get_running_loop(), asyncio.ensure_future(run_demo(run))

    def stop() -> None:
        if not run.stop():
            job.cancel()
        loop.call_soon_threadsafe(lambda: None)  # wakes the loop, so that it sees the cancellation

    with TwoStepInterrupt(stop, first=STOPPING, second="ended"):
        try:
            await job
        except (asyncio.CancelledError, TrainError):
            # Ctrl-C also reaches a download's process, whose failure is then not an error to
            # report.
            if not run.stopping:
                raise
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
