"""Learn from logged episodes: nothing is run or sampled, the log has tokens and rewards.

python examples/16_offline.py   (prints, for instance)

logged      0.0472 [0.0352, 0.0599] (n=128)
estimated  0.047 -> 0.208
resting on 5% of the episodes
played      0.0851 [0.0722, 0.0997] (n=256)
"""

import asyncio

import httpx

from orbiter.train import OfflineConfig, OfflineTrainer, TrajectoryDataset, mean_interval
from orbiter.train.capture import collect
from orbiter.train.serve import PolicyServer

TASKS = ["Say something.", "Sing."]


def vowels(_: str, output: str) -> float:
    return sum(character in "aeiouAEIOU" for character in output) / max(1, len(output))


async def log_episodes(model: str, dataset: TrajectoryDataset, attempts: int) -> None:
    """Let an agent on a served model work on every task, as it does in production."""
    async with PolicyServer(model, return_token_ids=True) as server, httpx.AsyncClient() as client:

        async def agent(task: str) -> str:
            messages = [{"role": "user", "content": task}]
            body = {"model": server.name, "messages": messages, "max_tokens": 8}
            answer = await client.post(f"{server.url}/chat/completions", json=body, timeout=60)
            return answer.raise_for_status().json()["choices"][0]["message"]["content"] or ""

        await collect(agent, TASKS, vowels, dataset=dataset, attempts=attempts, concurrency=16)


async def main() -> None:
    log = TrajectoryDataset()
    await log_episodes("tiny", log, attempts=64)
    print("logged    ", mean_interval([item.reward for item in log]))

    config = OfflineConfig(model="tiny", epochs=3, learning_rate=2e-3, min_effective_share=0.05)
    trainer = OfflineTrainer(config, dataset=log)
    before, _, after = await trainer.evaluate(), await trainer.train(), await trainer.evaluate()
    print(f"estimated  {before.reward:.3f} -> {after.reward:.3f}")
    print(f"resting on {after['effective_share']:.0%} of the episodes")

    # The estimate is from the log alone. Playing the trained policy shows how far it can be trusted.
    answers = await trainer.generate(TASKS, temperature=1.0, samples=128, max_response_length=8)
    print("played     ", mean_interval([vowels("", answer) for answer in answers]))


if __name__ == "__main__":
    asyncio.run(main())
