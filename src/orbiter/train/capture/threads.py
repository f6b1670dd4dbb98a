"""Make plain threads belong to the episode of the code that started them.

Context variables are inherited by tasks and by `asyncio.to_thread`, but not by `threading.Thread`
or a thread pool's workers. Thread start and pool `submit` are therefore wrapped, once, and pass on
this package's variables only. Calls in process pools cannot be seen from here.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from orbiter.train.capture.episode import CURRENT
from orbiter.train.capture.in_process import ANSWERING


@functools.cache
def follow_threads() -> None:
    """Wrap thread start and pool submission; a second call does nothing."""
    _wrap_start()
    _wrap_submit()


def _wrap_start() -> None:
    start = threading.Thread.start

    @functools.wraps(start)
    def started(self: threading.Thread) -> None:
        if CURRENT.get() is not None or ANSWERING.get() is not None:
            self.run = _inside(self.run)  # type: ignore[method-assign]  # of this thread only
        start(self)

    threading.Thread.start = started  # type: ignore[method-assign]  # the purpose of this file


def _wrap_submit() -> None:
    submit = ThreadPoolExecutor.submit

    def submitted(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: object, **kwargs: object
    ) -> Future[Any]:
        # Outside of any episode too: the worker may have been started inside one.
        return submit(self, _inside(fn), *args, **kwargs)

    # `functools.wraps` cannot type this generic method.
    submitted.__doc__ = submit.__doc__
    ThreadPoolExecutor.submit = submitted  # type: ignore[assignment, method-assign]  # as above


def _inside(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn`, bound to the present values of this package's context variables."""
    episode, answering = CURRENT.get(), ANSWERING.get()

    def run(*args: object, **kwargs: object) -> object:
        before = CURRENT.get(), ANSWERING.get()
        CURRENT.set(episode)
        ANSWERING.set(answering)
        try:
            return fn(*args, **kwargs)
        finally:
            CURRENT.set(before[0])
            ANSWERING.set(before[1])

    return run
