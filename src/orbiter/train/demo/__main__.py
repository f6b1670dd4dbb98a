"""`python -m orbiter.train.demo`: run the main job, which `make demo` does.

Options: --quick (the whole way in seconds, on a model that cannot learn it), --control (as many
seconds of further SFT as GRPO took, to compare with), --seed N, --out FOLDER.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from orbiter.train.demo.account import Account
from orbiter.train.demo.outcome import Outcome
from orbiter.train.demo.pipeline import run_demo
from orbiter.train.demo.plan import QUICK, Plan
from orbiter.train.errors import TrainError
from orbiter.train.interrupts import TwoStepInterrupt

INTERRUPTED = 128 + signal.SIGINT
"""What a shell expects of a process that Ctrl-C has ended."""
STOPPING = "stopping after the current piece of work; Ctrl-C again ends the run at once"
KEPT = {
    "traces.jsonl": "the captured traces",
    "sft/best": "the best model of SFT",
    "model": "the trained model",
}
"""What an interrupted run may leave that is whole and worth keeping."""


def main() -> int:
    """Run the demo.

    Returns:
        0, or 1 where something that it needs is missing, with what to do about it; 130 after
        Ctrl-C, with what the run leaves.
    """
    parser = argparse.ArgumentParser(prog="python -m orbiter.train.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few requests")
    parser.add_argument("--control", action="store_true", help="further SFT, to compare with")
    parser.add_argument("--seed", type=int, default=0, help="of the split, batches and samples")
    parser.add_argument("--out", type=Path, help="the run's folder; runs/demo-<time> unless given")
    options = parser.parse_args()
    folder = options.out or Path("runs") / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    plan = replace(QUICK if options.quick else Plan(), control=options.control, seed=options.seed)
    account = Account(Outcome())
    try:
        finished = asyncio.run(_run(plan, folder, account))
    except TrainError as error:
        account.console.print(f"error: {error}", style="red", markup=False)
        return 1
    if not finished:
        account.console.print(f"interrupted: {left_behind(folder)}", markup=False, soft_wrap=True)
        return INTERRUPTED
    account.summary()
    return 0


async def _run(plan: Plan, folder: Path, account: Account) -> bool:
    """Run the demo, and say whether it came to its end.

    The first Ctrl-C ends it after the current piece of work, so that no half-written file is left
    for the next run; the second one ends the process.
    """
    loop, run = asyncio.get_running_loop(), asyncio.ensure_future(run_demo(plan, folder, account))

    def stop() -> None:
        run.cancel()
        loop.call_soon_threadsafe(lambda: None)  # wakes the loop, so that it sees the cancellation

    with TwoStepInterrupt(stop, first=STOPPING, second="ended", signals=(signal.SIGINT,)):
        try:
            await run
        except (asyncio.CancelledError, TrainError):
            # Ctrl-C also reaches a download's process; its failure is then a consequence.
            if not run.cancelling():
                raise
            return False
    return True


def left_behind(folder: Path) -> str:
    """Say what an interrupted run has left, and how to go on."""
    kept = [f"{folder / name} ({what})" for name, what in KEPT.items() if (folder / name).exists()]
    left = f"{', '.join(kept)} stay" if kept else "nothing worth keeping was made yet"
    return f"{left}; a run cannot be taken up again, a new one begins in a folder of its own"


if __name__ == "__main__":
    sys.exit(main())
