"""Submit a command to a Ray cluster as a job, print its log, and stop it on request.

    python -m orbiter.train.verl.cluster.inside.submit < request.json

The parent process can treat the job as a child process: the job's output appears on standard
output and its result as an exit code, and SIGTERM or the end of standard input stops it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass

from ray.job_submission import JobStatus, JobSubmissionClient

ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}
STOPPING_SECONDS = 20
"""Time that a job has to stop."""
AGENT_SECONDS = 60
"""Time that a cluster has to start its job agent, which may be later than its job server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A command to run, and the cluster to run it on."""

    address: str
    submission_id: str
    command: str
    """Shell command, run on the cluster's head node."""
    environment: dict[str, str]
    """Environment variables of every process of the job."""


async def submit(request: JobRequest) -> int:
    """Run the job to its end; return 0 if it succeeded, else 1."""
    client = JobSubmissionClient(request.address)
    await _start(client, request)
    loop, log = asyncio.get_running_loop(), asyncio.create_task(_print_log(client, request))
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ends the waiting for the log; the job itself is stopped below.
        loop.add_signal_handler(number, log.cancel)
    # A parent that was killed cannot send a signal, but its end of the pipe closes.
    loop.add_reader(sys.stdin.fileno(), _unless_ended, log)
    try:
        await log
    except asyncio.CancelledError:
        client.stop_job(request.submission_id)
    return 0 if await _end(client, request) == JobStatus.SUCCEEDED else 1


async def _start(client: JobSubmissionClient, request: JobRequest) -> None:
    """Submit the job, again if the cluster has no job agent yet."""
    until = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                entrypoint=request.command,
                submission_id=request.submission_id,
                runtime_env={"env_vars": request.environment},
            )
        except RuntimeError as error:  # Ray has no class for it
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > until:
                raise RuntimeError(
                    f"The cluster at {request.address} had no job agent within {AGENT_SECONDS} s "
                    f"({error}). If two Rays run on its head node, start each with another "
                    "`ray start --dashboard-agent-listen-port`."
                ) from error
            await asyncio.sleep(0.5)
        else:
            return


def _unless_ended(log: asyncio.Task[None]) -> None:
    """Stop the job if standard input has closed, which means that the parent process has ended."""
    if not os.read(sys.stdin.fileno(), 1024):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        log.cancel()


async def _print_log(client: JobSubmissionClient, request: JobRequest) -> None:
    async for lines in client.tail_job_logs(request.submission_id):
        sys.stdout.write(lines)
        sys.stdout.flush()


async def _end(client: JobSubmissionClient, request: JobRequest) -> JobStatus:
    """Wait until the job has ended, which is shortly after its log ends."""
    until = time.monotonic() + STOPPING_SECONDS
    # The log may end a moment before Ray knows how the job ended.
    while (status := client.get_job_status(request.submission_id)) not in ENDED:
        if time.monotonic() > until:
            break
        await asyncio.sleep(0.2)
    sys.stdout.write(f"Ray job {request.submission_id} at {request.address}: {status}\n")
    message = client.get_job_info(request.submission_id).message
    sys.stdout.write(f"{message}\n" if status == JobStatus.FAILED and message else "")
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(submit(JobRequest(**json.loads(sys.stdin.readline())))))
