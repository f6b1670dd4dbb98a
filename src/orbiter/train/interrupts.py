"""End work in two steps: the first Ctrl-C asks it to finish cleanly, the second ends it at once.

SIGTERM is handled the same way, because clusters send it as a warning before they kill a job.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Self

SHOW_CURSOR = "\x1b[?25h"
"""The escape sequence that undoes a progress bar's hiding of the cursor."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TwoStepInterrupt:
    """Handle signals while its block runs, and remember the first.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """

    def __init__(
        self,
        ask: Callable[[], object],
        *,
        first: str = "",
        second: str | Callable[[], str] | None = None,
        signals: Sequence[signal.Signals] = SIGNALS,
    ) -> None:
        """Prepare to call `ask` at the first signal.

        Args:
            ask: Asks the work to end. It runs inside the signal handler, between two instructions
                of the main thread, so it should only set a flag or call `call_soon_threadsafe`.
            first: Printed on standard error at the first signal.
            second: Printed at the second signal, which then ends the process with 128 + number; a
                function returns the text at that moment.
                None restores the previous handlers after the first signal instead, so that the
                second one interrupts as usual.
            signals: Which signals to handle.
        """
        self.received: int | None = None
        """The number of the first signal, if one came."""
        self._ask, self._first, self._second = ask, first, second
        self._signals = signals
        self._previous: dict[int, signal.Handlers | Callable[..., object] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            # Taken out one by one, so that a second interrupt here does not restore a handler
            # twice.
            number, handler = self._previous.popitem()
            # None means that C code installed the handler, which Python cannot put back.
            signal.signal(number, handler or signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python passes it
        if self.received is not None:
            # Files are whole at every moment (storage.py), so there is nothing to tidy up.
            text = self._second() if callable(self._second) else self._second
            _write(f"{SHOW_CURSOR if os.isatty(2) else ''}{text}\n")
            os._exit(128 + number)
        self.received = number
        if self._first:
            _write(f"\n{self._first}\n")
        if self._second is None:
            self._restore()
        self._ask()


def _write(text: str) -> None:
    """Write around Python's buffers, which the signal may have interrupted half-written."""
    # Python's print may wait for a lock that the interrupted code holds.
    os.write(2, text.encode())
