"""What the proxy adds to a call, and whether it loses or mixes anything under load.

    python benchmarks/proxy.py

A real server on 127.0.0.1 in a process of its own, the proxy in another, one client here. Calls go
directly and through the proxy by turns, so both meet the same machine. Targets: at most 2 ms more
at the median; of 1,000 streams at once none lost and none corrupted, each also in the journal.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx2
import psutil

from machine import machine

sys.path.insert(0, str(Path(__file__).parent.parent))

CALLS, STREAMS = 300, 1000


def serve_model(tell: Connection) -> None:
    from tests.capture.server import ModelServer

    def echo(body: dict[str, Any]) -> str:
        return f"echo of {body['messages'][-1]['content']} " * 20

    with ModelServer(reply=echo, chunk_pause=0.0) as server:
        tell.send(server.url)
        tell.recv()


def serve_proxy(tell: Connection, to: str, journal: str) -> None:
    import socket

    import uvicorn

    from orbiter.train import TrajectoryDataset
    from orbiter.train.capture import proxy_app

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(4096)
    with TrajectoryDataset(path=journal) as dataset:
        config = uvicorn.Config(proxy_app(to, dataset), log_level="error", access_log=False)
        tell.send(f"http://127.0.0.1:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])


def started(target: Callable[..., None], *args: str) -> tuple[Any, Connection, str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(there, *args))
    process.start()
    return process, here, here.recv()


def body(text: str, *, stream: bool) -> dict[str, Any]:
    return {"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}


def latency(direct: str, through: str) -> None:
    times: dict[str, list[float]] = {direct: [], through: []}
    with httpx2.Client(timeout=60) as client:
        for number in range(CALLS + 20):
            for url, seen in times.items():
                start = time.perf_counter()
                client.post(f"{url}/chat/completions", json=body("hi", stream=False))
                if number >= 20:
                    seen.append((time.perf_counter() - start) * 1e3)
    pairs = [b - a for a, b in zip(times[direct], times[through], strict=True)]
    for name, url in (("direct", direct), ("through the proxy", through)):
        quantiles = statistics.quantiles(times[url], n=20)
        print(
            f"  {name:18} p50 {statistics.median(times[url]):5.2f} ms, p95 {quantiles[-1]:5.2f} ms"
        )
    added = statistics.median(times[through]) - statistics.median(times[direct])
    verdict = "met" if added <= 2 else "MISSED"
    print(f"  added: p50 {added:.2f} ms (median of pairs {statistics.median(pairs):.2f}; "
          f"target <= 2: {verdict})")  # fmt: skip


async def streams(through: str) -> list[str]:
    limits = httpx2.Limits(max_connections=STREAMS)
    async with httpx2.AsyncClient(timeout=600, limits=limits) as client:

        async def one(number: int) -> str:
            url = f"{through}/s/e{number}/v1/chat/completions"
            answer = await client.post(url, json=body(f"<{number}>", stream=True))
            if answer.status_code != 200:
                problems[answer.text[:200]] = problems.get(answer.text[:200], 0) + 1
            return text_in(answer.text)

        problems: dict[str, int] = {}
        answers = await asyncio.gather(*map(one, range(STREAMS)))
        for problem, count in problems.items():
            print(f"  {count} x {problem}")
        return answers


def text_in(stream: str) -> str:
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def main() -> None:
    from orbiter.train import TrajectoryDataset

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16384), most))
    journal = str(Path(tempfile.mkdtemp()) / "journal")
    model, _line, url = started(serve_model)
    proxy, _other, front = started(serve_proxy, url, journal)
    print(f"{machine()}; {CALLS} calls each way:")
    try:
        busy = psutil.Process(proxy.pid)
        before = sum(busy.cpu_times()[:2])
        latency(url, f"{front}/s/latency/v1")
        used = (sum(busy.cpu_times()[:2]) - before) / (CALLS + 20) * 1e3
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        print(f"  the proxy's CPU: {used:.2f} ms a call; load of this machine: {load:.1f} a core")
        start = time.perf_counter()
        answers = asyncio.run(streams(front))
        took = time.perf_counter() - start
    finally:
        proxy.terminate()
        proxy.join()
        model.terminate()
        model.join()
    wanted = [f"echo of <{number}> " * 20 for number in range(STREAMS)]
    with TrajectoryDataset(path=journal) as dataset:
        kept = {item.episode_id: item.action for item in dataset.waiting}
    lost = sum(not answer for answer in answers)
    wrong = sum(a != w for a, w in zip(answers, wanted, strict=True)) - lost
    unkept = sum(kept.get(f"e{number}") != text for number, text in enumerate(wanted))
    print(
        f"{STREAMS} streams at once in {took:.1f} s: {lost} lost, {wrong} corrupted on their way, "
          f"{unkept} missing or corrupted in the journal (target 0, 0, 0)")  # fmt: skip


if __name__ == "__main__":
    main()
