"""Asks 300 questions through a cache: to be killed, and run again.

python killed_worker.py BASE_URL CACHE_FILE
"""

from __future__ import annotations

import asyncio
import sys

from orbiter.train.llm import ClientConfig, RemoteChatModel


async def main(base_url: str, cache: str) -> None:
    """Ask, and say when it is done."""
    config = ClientConfig(model="m", base_url=base_url, concurrency=8)
    async with RemoteChatModel(config, cache=cache) as model, asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(model([{"role": "user", "content": f"question {number}"}]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
