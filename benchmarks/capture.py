"""What a captured item costs: against an OpenTelemetry span, by number of items, in memory.

    python benchmarks/capture.py

CPU time of construction and capture together, on items of about 800 bytes of text, which the caller
has already; both sides hold the same facts. A span's attributes are what OpenTelemetry's GenAI
convention makes of them: the messages as JSON text.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from machine import machine
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

COUNT, ROUNDS = 5_000, 7
STATE, ACTION = "The user asked: " + "what does it say? " * 33, "search(query='" + "x" * 120 + "')"


TEXTS = [(f"{STATE}{number}", f"{ACTION}{number}") for number in range(1_000_000)]


def item(number: int) -> TrajectoryItem:
    state, action = TEXTS[number]
    return TrajectoryItem(state, action, 0.5, {"agent": "assistant", "step": number})


def microseconds(act: Callable[[int], object], count: int = COUNT) -> float:
    gc.collect()
    gc.freeze()  # what an earlier round left alive is not visited on this round's account
    start = time.process_time()
    for number in range(count):
        act(number)
    return (time.process_time() - start) / count * 1e6


def in_memory() -> Callable[[int], object]:
    dataset = TrajectoryDataset()
    return lambda number: dataset.capture(item(number))


def on_disk(folder: Path) -> Callable[[int], object]:
    dataset = TrajectoryDataset(path=folder / f"journal-{time.monotonic_ns()}")
    return lambda number: dataset.capture(item(number))


def span() -> Callable[[int], object]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    tracer = provider.get_tracer("benchmark")

    def message(role: str, text: str) -> str:
        return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])

    def act(number: int) -> None:
        with tracer.start_as_current_span("chat") as current:
            current.set_attribute("gen_ai.operation.name", "chat")
            state, action = TEXTS[number]
            current.set_attribute("gen_ai.input.messages", message("user", state))
            current.set_attribute("gen_ai.output.messages", message("assistant", action))
            current.set_attribute("gen_ai.agent.name", "assistant")
            current.set_attribute("gen_ai.evaluation.score.value", 0.5)
            current.set_attribute("step", number)

    return act


def against_spans(folder: Path) -> None:
    makers: dict[str, Callable[[], Callable[[int], object]]]
    makers = {"in memory": in_memory, "on disk": lambda: on_disk(folder)}
    try:
        span()
    except ModuleNotFoundError:
        print("no peer: pip install 'orbiter-train[bench]' brings opentelemetry-sdk")
    else:
        makers = {"span": span, **makers}
    rounds = [{name: microseconds(make()) for name, make in makers.items()} for _ in range(ROUNDS)]
    for name in makers:
        taken = [one[name] for one in rounds]
        spread = f"from {min(taken):.2f} to {max(taken):.2f}"
        print(f"{name:>10}: {statistics.median(taken):6.2f} us an item ({spread})")
    for name, target in (("in memory", 10), ("on disk", 4)):
        if "span" in makers:
            ratios = [one["span"] / one[name] for one in rounds]
            spread = f"from {min(ratios):.1f} to {max(ratios):.1f}; target {target}"
            print(f"{name:>10}: {statistics.median(ratios):.1f} x cheaper than a span ({spread})")


def by_number() -> None:
    for count in (1_000, 10_000, 100_000, 1_000_000):
        cost = statistics.median(microseconds(in_memory(), count) for _ in range(3))
        print(f"{count:>10,} items: {cost:.2f} us an item")


def memory(count: int = 200_000) -> None:
    process = psutil.Process()
    texts = [(f"{STATE}{n}", f"{ACTION}{n}", {"agent": "a", "step": n}) for n in range(count)]
    dataset = TrajectoryDataset()
    gc.collect()
    before = process.memory_info().rss
    for state, action, metadata in texts:
        dataset.capture(TrajectoryItem(state, action, 0.5, metadata))
    gc.collect()
    grown = (process.memory_info().rss - before) / len(dataset)
    print(f"{grown:.0f} resident bytes an item beyond the caller's own text (target 600)")


if __name__ == "__main__":
    print(f"{machine()}")
    with tempfile.TemporaryDirectory() as temporary:
        against_spans(Path(temporary))
    memory()
    by_number()
