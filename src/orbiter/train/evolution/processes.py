"""Runs a plain function in worker processes, which can be killed where a thread cannot.

A thread that hangs keeps hanging after its timeout; a worker process is killed and replaced. There
are no limits on memory or files: a worker may do whatever this process may do.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Generic, NamedTuple, Self, TypeVar

from orbiter.train.callback import in_thread
from orbiter.train.errors import CallbackError, ConfigError

C = TypeVar("C")
R = TypeVar("R")


class InProcess(Generic[C, R]):
    """Turns a plain function into an async one that a timeout actually stops.

    Example::

        with InProcess(run_candidate, workers=4) as evaluate:
            strategy = CallableEvolution(evaluate, mutate)
            config = EvolutionConfig(timeout=10, concurrency=4)
            result = await EvolutionPipeline(config, strategy).run(start)

    Arguments and results travel between processes, so they must be picklable. As always with
    processes, a script needs its `if __name__ == "__main__":`.
    """

    def __init__(self, fn: Callable[[C], R], *, workers: int | None = None) -> None:
        """Store the settings; processes start when they are first needed.

        Args:
            fn: a function at the top of a module, so that a fresh process finds it.
            workers: the maximum number of calls at once; None means the number of cores.

        Raises:
            ConfigError: a fresh process could not find the function.
        """
        try:
            # Tried at once: otherwise the first evaluation would fail, in another process.
            ForkingPickler.dumps(fn)
        except Exception as error:  # pickling can raise any exception
            raise ConfigError(
                f"{fn!r} cannot be sent to another process ({error}): define it at the top of a "
                "module, with def"
            ) from error
        if workers is not None and workers < 1:
            raise ConfigError(f"workers must be at least 1, got {workers!r}")
        self._fn = fn
        self._idle: list[_Worker] = []
        self._free = asyncio.Semaphore(workers or os.cpu_count() or 1)

    async def __call__(self, candidate: C) -> R:
        """Return `fn(candidate)`, computed in a worker; cancelling this kills the worker.

        Raises:
            CallbackError: the function raised, or its process ended without an answer.
        """
        async with self._free:
            worker = self._idle.pop() if self._idle else _start(self._fn)
            try:
                # A thread waits for the pipe; killing the worker ends the wait, and with it the
                # thread.
                answer = await in_thread(_ask, worker, candidate)
            except BaseException:
                _kill(worker)
                raise
            self._idle.append(worker)
        if answer.error is not None:
            raise CallbackError(answer.error)
        return answer.value  # type: ignore[return-value] # it is what fn returned

    def close(self) -> None:
        """End the idle workers."""
        while self._idle:
            _kill(self._idle.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: Connection


class _WorkerAnswer(NamedTuple):
    value: object
    error: str | None


def _start(fn: Callable[[C], R]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads' locks
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(fn, theirs), daemon=True)
    process.start()
    # Only then does recv raise EOFError here when the worker dies.
    theirs.close()
    return _Worker(process, ours)


def _serve(fn: Callable[[C], R], pipe: Connection) -> None:
    """Answer one call after the other, until the other end of the pipe is closed."""
    while True:
        try:
            candidate = pipe.recv()
        # Ctrl-C reaches every process of the terminal; this process ends its workers itself.
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = _WorkerAnswer(fn(candidate), None)
        except Exception as error:  # the user's own function
            answer = _WorkerAnswer(None, f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except Exception as error:  # pickling can raise any exception
            pipe.send(_WorkerAnswer(None, f"its answer cannot be sent back: {error}"))


def _ask(worker: _Worker, candidate: object) -> _WorkerAnswer:
    try:
        worker.pipe.send(candidate)
        answer: _WorkerAnswer = worker.pipe.recv()
    except (EOFError, OSError) as error:
        # The pipe closes a moment before the exit code is known.
        worker.process.join(timeout=1.0)
        raise CallbackError(
            f"the process ended without an answer (exit code {worker.process.exitcode})"
        ) from error
    return answer


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()
