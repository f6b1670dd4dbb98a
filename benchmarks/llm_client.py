"""What our client adds to a call: CPU time beside the raw `openai` client on the same server.

    python benchmarks/llm_client.py

The server is a process of its own, so that only the clients' CPU time is counted. Both make the
same calls, 16 at once, in turns; ours also keeps every answer in its cache. The target is at most
1 ms more a call.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from machine import machine
from orbiter.train.llm import ClientConfig, RemoteChatModel

ROUNDS, CALLS, AT_ONCE, TARGET_MS = 9, 300, 16, 1.0

ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "An answer of some length. " * 20},
        }
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 120, "total_tokens": 130},
}


async def serve() -> None:
    body = json.dumps(ANSWER).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readuntil(b"\r\n\r\n"):
            lines = request.decode("latin-1").lower().split("\r\n")
            length = next(line for line in lines if line.startswith("content-length"))
            await reader.readexactly(int(length.partition(":")[2]))
            writer.write(head.encode() + body)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def cpu_ms(call: Callable[[str], Awaitable[object]], label: str) -> float:
    """Return the CPU milliseconds of one call among many."""
    numbers = iter(range(CALLS))

    async def worker() -> None:
        for number in numbers:
            await call(f"{label} {number}")

    began = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    return (time.process_time() - began) * 1000 / CALLS


async def measure(base_url: str, folder: Path) -> None:
    import openai

    raw = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    config = ClientConfig(model="m", base_url=base_url, concurrency=AT_ONCE)
    async with raw, RemoteChatModel(config, cache=folder / "answers.sqlite") as ours:

        async def call_raw(text: str) -> object:
            return await raw.chat.completions.create(
                model="m", messages=[{"role": "user", "content": text}]
            )

        async def call_ours(text: str) -> object:
            return await ours([{"role": "user", "content": text}])

        pairs = []
        for turn in range(ROUNDS + 1):
            mine = await cpu_ms(call_ours, f"round {turn}")
            pairs.append((mine, await cpu_ms(call_raw, f"round {turn}")))
        cached = await cpu_ms(call_ours, "round 0")
    report(pairs[1:], cached)


def report(pairs: list[tuple[float, float]], cached: float) -> None:
    extra = sorted(mine - raw for mine, raw in pairs)
    print(f"{machine()}; {ROUNDS} rounds of {CALLS}")
    print(f"raw openai  {statistics.median(raw for _, raw in pairs):6.3f} ms CPU a call")
    print(f"ours        {statistics.median(mine for mine, _ in pairs):6.3f} ms CPU a call")
    print(f"from cache  {cached:6.3f} ms CPU a call")
    middle = statistics.median(extra)
    verdict = "met" if middle <= TARGET_MS else "MISSED"
    print(
        f"added {middle:.3f} ms ({extra[0]:.3f} to {extra[-1]:.3f}); target {TARGET_MS} {verdict}"
    )


def main() -> None:
    command = [sys.executable, __file__, "serve"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            asyncio.run(measure(f"http://127.0.0.1:{port}/v1", Path(folder)))
        finally:
            server.kill()


if __name__ == "__main__":
    asyncio.run(serve()) if sys.argv[1:] == ["serve"] else main()
