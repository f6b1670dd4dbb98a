"""PPO with two rewards, one of which knows the task's truth through a parameter named `item`.

    python examples/07_ppo.py

Prints:

    step  1  reward 0.04  reward/vowels 0.04  reward/brevity 0.04  kl 0.00  value 0.00
    step  9  reward 0.32  reward/vowels 0.38  reward/brevity 0.07  kl 0.74  value 0.22
    step 17  reward 0.75  reward/vowels 0.94  reward/brevity 0.00  kl 2.92  value 0.75
    step 25  reward 0.79  reward/vowels 0.99  reward/brevity 0.00  kl 3.40  value 0.78
    ['iiiiiiii']
"""

import asyncio

from orbiter.train import RewardSpec, TrajectoryItem, VeRLAlgorithm, VeRLConfig, VeRLTrainer


def wanted(output: str, item: TrajectoryItem) -> float:
    return sum(c in str(item.metadata["wanted"]) for c in output) / max(1, len(output))


async def brevity(output: str) -> float:
    return 1 - min(len(output), 8) / 8


async def main() -> None:
    tasks = [TrajectoryItem("Sing.", "", metadata={"wanted": "aeiouAEIOU"})] * 32
    config = VeRLConfig(
        algorithm=VeRLAlgorithm.PPO,
        model="tiny",
        epochs=8,
        batch_size=8,
        group_size=8,
        learning_rate=1e-3,
        max_response_length=8,
        ppo_epochs=2,
        minibatch_size=32,  # samples an update: 8 x 8 samples make 2 updates a pass
        kl_coef=0.001,
    )
    rewards = [
        RewardSpec(name="vowels", weight=0.8, fn=wanted),
        RewardSpec(name="brevity", weight=0.2, fn=brevity),
    ]
    trainer = VeRLTrainer(config=config, rewards=rewards)
    await trainer.train(tasks)
    for row in trainer.history[::8]:
        shown = ("reward", "reward/vowels", "reward/brevity", "kl", "value")
        print(f"step {row['step']:>2} ", "  ".join(f"{name} {row[name]:.2f}" for name in shown))
    print(await trainer.generate(tasks[:1]))


if __name__ == "__main__":
    asyncio.run(main())
