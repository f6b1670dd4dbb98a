"""Train an agent on its whole episodes: what it says in both turns is what is paid.

python examples/15_train_agent.py
"""

import asyncio

import httpx

from orbiter.train import RewardSpec, VeRLConfig, VeRLTrainer

URL = "https://api.example.invalid/v1/chat/completions"  # no such machine: the policy answers


async def agent(task: str) -> str:
    """Ask twice, as an agent would with any provider."""
    messages = [{"role": "user", "content": task}]
    async with httpx.AsyncClient() as client:
        for _ in range(2):
            body = {"model": "gpt-5-mini", "messages": messages}
            answer = (await client.post(URL, json=body)).raise_for_status().json()
            messages.append(answer["choices"][0]["message"])
            messages.append({"role": "user", "content": "Say more."})
    return "".join(message["content"] or "" for message in messages[1::2])


def vowels(output: str) -> float:
    return sum(character in "aeiouAEIOU" for character in output) / max(1, len(output))


async def main() -> None:
    config = VeRLConfig(
        model="tiny",
        epochs=8,
        batch_size=4,  # tasks a step
        group_size=8,  # episodes of each, compared with each other
        learning_rate=2e-3,
        max_response_length=8,  # tokens of a turn
    )
    trainer = VeRLTrainer(config, rewards=[RewardSpec("vowels", fn=vowels)], agent=agent)
    tasks = ["Say something.", "Sing."] * 8
    before = await trainer.evaluate(tasks[:2], samples=16)
    await trainer.train(tasks)
    after = await trainer.evaluate(tasks[:2], samples=16)
    for row in trainer.history[::8]:
        print(f"step {row['step']:>2}  reward {row['reward']:.2f}  turns {row['turns']:.0f}")
    print(f"reward {before.reward:.2f} -> {after.reward:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
