"""What capturing a call of a model costs: against ART's auto-capture, in memory, in the journal.

    pip install --no-deps --target build/art openpipe-art==0.5.18
    python benchmarks/capture_agents.py

ART captures `httpx`, which openai 3 has left, so both are measured on plain `httpx`: the requests
of one conversation, and a transport that answers from memory. The cost of capturing is the CPU time
of a call with it, less that of the same call without, in pairs. Only the files of ART that capture
are imported; its package asks for much more. Target: at most 0.6 times ART's.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import msgspec

from machine import machine
from orbiter.train import TrajectoryDataset
from orbiter.train.capture import record

ART = Path(__file__).parent.parent / "build" / "art" / "art"
TURNS, ROUNDS = 20, 15
TARGET = 0.6
URL = "http://127.0.0.1/v1/chat/completions"
SYSTEM = "You keep the books of a small shop and answer with the help of tools. " * 8
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{k}",
            "description": "Looks something up. " * 5,
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
        },
    }
    for k in range(4)
]


def body_of(turn: int) -> dict[str, Any]:
    arguments = json.dumps({"query": f"row {turn}"})
    call = {"name": "tool_1", "arguments": arguments}
    message = {
        "role": "assistant",
        "content": f"Turn {turn}: I look at the next row and note what it says. " * 3,
        "tool_calls": [{"id": f"call_{turn}", "type": "function", "function": call}],
    }
    return {
        "id": f"chatcmpl-{turn}",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960},
    }


def events_of(turn: int) -> bytes:
    whole = body_of(turn)
    choice = whole["choices"][0]
    head = {"id": whole["id"], "object": "chat.completion.chunk", "created": 1, "model": "m"}
    words = choice["message"]["content"].split(" ")
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f"{word} "} for word in words]
    call = {"index": 0, **choice["message"]["tool_calls"][0]}
    lines = [head | {"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    last = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    lines.append(head | {"choices": [last]})
    return b"".join(f"data: {json.dumps(x)}\n\n".encode() for x in lines) + b"data: [DONE]\n\n"


class Parts(httpx.SyncByteStream):
    """A response that comes in pieces."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(self.raw), 4096):
            yield self.raw[at : at + 4096]


def client(turns: int, *, stream: bool) -> httpx.Client:
    """Return a client whose answers come from memory, the turn's own each."""
    answers = [
        events_of(turn) if stream else json.dumps(body_of(turn)).encode() for turn in range(turns)
    ]
    kind = {"content-type": "text/event-stream" if stream else "application/json"}

    def handle(request: httpx.Request) -> httpx.Response:
        turn = request.content.count(b'"role":"tool"')
        return httpx.Response(200, headers=kind, stream=Parts(answers[turn]))

    return httpx.Client(transport=httpx.MockTransport(handle))


def requests(turns: int, *, stream: bool) -> list[bytes]:
    """Return the bodies that an agent sends in one conversation."""
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Go through the books."},
    ]
    bodies = []
    for turn in range(turns):
        asked = {"model": "m", "messages": messages, "tools": TOOLS, "temperature": 0.2}
        bodies.append(json.dumps(asked | {"stream": stream}, separators=(",", ":")).encode())
        messages.append(body_of(turn)["choices"][0]["message"])
        result = f"row {turn}: 12 apples, 3 pears, sold at noon for a fair price; " * 12
        messages.append({"role": "tool", "tool_call_id": f"call_{turn}", "content": result})
    return bodies


def episode(asked: httpx.Client, bodies: list[bytes], scope: AbstractContextManager[Any]) -> float:
    """Send the requests of a conversation; return CPU microseconds a call, the scope's included."""
    gc.collect()
    start = time.process_time()
    with scope:
        for body in bodies:
            with asked.stream("POST", URL, content=body) as answer:
                for _ in answer.iter_bytes():
                    pass
    return (time.process_time() - start) / len(bodies) * 1e6


def arts() -> Callable[[], AbstractContextManager[Any]] | None:
    """Return ART's capture, loaded without the rest of its package."""
    if not ART.exists():
        print("ART: not installed; see the first lines of this file")
        return None
    package = types.ModuleType("art")
    package.__path__ = [str(ART)]
    sys.modules["art"] = package
    from art.auto_trajectory import AutoTrajectoryContext

    return AutoTrajectoryContext


def in_memory() -> AbstractContextManager[Any]:
    return record(TrajectoryDataset(), agent="a", task_id="t")


def costs(stream: bool) -> None:
    folder = Path(tempfile.mkdtemp())
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "without": nullcontext,
        "ours, in memory": in_memory,
        "ours, journal": lambda: record(
            TrajectoryDataset(path=folder / f"j{time.monotonic_ns()}"), agent="a", task_id="t"
        ),
    }
    peer = arts()
    if peer is not None:
        ways["ART"] = peer
    asked, bodies = client(TURNS, stream=stream), requests(TURNS, stream=stream)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, scope in ways.items():
            measured = episode(asked, bodies, scope())
            if number:  # the first round warms up
                times[name].append(measured)
    print(f"\n{'streamed' if stream else 'whole'} replies, conversations of {TURNS} turns:")
    base = times.pop("without")
    print(f"  a call without capture           {statistics.median(base):7.0f} us")
    cost = {n: [t - b for t, b in zip(ts, base, strict=True)] for n, ts in times.items()}
    for name, values in cost.items():
        low, high = min(values), max(values)
        print(f"  {name:17} adds  {statistics.median(values):16.0f} us ({low:.0f}..{high:.0f})")
    if "ART" in cost:
        for name in ("ours, in memory", "ours, journal"):
            ratio = statistics.median(cost[name]) / statistics.median(cost["ART"])
            verdict = "met" if ratio <= TARGET else "MISSED"
            print(f"  {name} / ART = {ratio:.2f}  (target <= {TARGET}: {verdict})")


def sizes(turns: int = 50) -> None:
    """Compare what an episode takes with what its whole prefixes would."""
    asked, bodies = client(turns, stream=False), requests(turns, stream=False)
    episode(asked, bodies, in_memory())  # what is loaded once counts for nobody
    path = Path(tempfile.mkdtemp()) / "journal"
    dataset = TrajectoryDataset(path=path)
    tracemalloc.start()
    episode(asked, bodies, record(dataset, agent="a", task_id="t", episode_id="e"))
    captured = path.stat().st_size
    dataset.assign_reward("e", 1.0)
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0]
    lines = [msgspec.json.encode(item.to_dict()) for item in dataset]
    tracemalloc.clear_traces()
    whole = [msgspec.json.decode(line) for line in lines]
    in_full = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    text = sum(map(len, lines))
    dataset.close()
    print(f"\nan episode of {len(whole)} turns, against items that each hold their whole prefix:")
    show("journal", text, captured)
    show("journal, rewarded", text, path.stat().st_size)
    show("memory, rewarded", in_full, memory)


def show(name: str, whole: float, ours: float) -> None:
    verdict = "met" if whole / ours >= 15 else "MISSED"
    sizes = f"{ours / 1e3:6.0f} kB of {whole / 1e3:6.0f} kB"
    print(f"  {name:18} {sizes}: {whole / ours:.1f} x smaller "
          f"(target >= 15: {verdict})")  # fmt: skip


if __name__ == "__main__":
    print(f"{machine()}")
    costs(stream=False)
    costs(stream=True)
    sizes()
