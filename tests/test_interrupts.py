"""Ctrl-C in two steps, with real signals."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from orbiter.train.interrupts import TwoStepInterrupt
from tests.children import run_child

SCRIPT = """
import os, signal
from orbiter.train.interrupts import TwoStepInterrupt
with TwoStepInterrupt(lambda: print("asked", flush=True), first="finishing", second="ended"):
    for _ in range(2):
        os.kill(os.getpid(), signal.{name})
print("not reached")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_asks_and_the_second_ends_the_process(name: str) -> None:
    done = run_child([sys.executable, "-c", SCRIPT.format(name=name)])
    assert done.returncode == 128 + signal.Signals[name]
    assert done.stdout == "asked\n"
    assert done.stderr.split() == ["finishing", "ended"]


def test_the_last_words_may_depend_on_how_far_the_work_is() -> None:
    script = SCRIPT.format(name="SIGTERM").replace('second="ended"', "second=lambda: words[-1]")
    script = script.replace('"asked", flush=True', 'words.append("asked")').strip()
    done = run_child([sys.executable, "-c", f"words = ['begun']\n{script}"])
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.split() == ["finishing", "asked"]


def test_without_a_second_text_the_second_ctrl_c_interrupts_as_usual() -> None:
    asked: list[int] = []
    with TwoStepInterrupt(lambda: asked.append(1), signals=(signal.SIGINT,)) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert (asked, interrupt.received) == ([1], signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]


def test_afterwards_the_previous_handlers_are_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with TwoStepInterrupt(lambda: None, second="ended"):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_nothing_is_handled_and_nothing_fails() -> None:
    handlers: list[object] = []

    def work() -> None:
        with TwoStepInterrupt(lambda: None, second="ended"):
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
