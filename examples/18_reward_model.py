"""Train a reward model on preferences, and a policy on the reward model.

python examples/18_reward_model.py   (prints, for instance)

accuracy    1 [0.541, 1] (n=6)
Brier       3.56e-08 [3.54e-08, 3.57e-08] (n=6)
scores      2: -4.29 5: -4.29 9: 4.28 12: 4.29
reward      -4.29 [-4.29, -4.29] (n=8) -> 2.15 [0.0198, 3.74] (n=8)
"""

import asyncio

from orbiter.train import (
    RewardModel,
    RewardModelConfig,
    RewardModelTrainer,
    RewardSpec,
    TrajectoryItem,
    VeRLConfig,
    VeRLTrainer,
)

LENGTHS = (2, 5, 9, 12)


def judged(tasks: range) -> list[TrajectoryItem]:
    """Four answers to each task; longer ones were preferred."""
    return [
        TrajectoryItem(f"Write line {task}.", "ab" * (length // 2) + "c", float(length))
        for task in tasks
        for length in LENGTHS
    ]


async def main() -> None:
    config = RewardModelConfig(model="tiny", epochs=8, batch_size=4, learning_rate=1e-3)
    trainer = RewardModelTrainer(config, dataset=judged(range(12)))
    await trainer.train()
    quality = await trainer.quality(judged(range(12, 18)))
    print("accuracy   ", quality.accuracy)
    print("Brier      ", quality.brier)
    folder = await trainer.save("build/example-18")

    liked = RewardModel(folder)
    scores = await liked.score(judged(range(20, 21)))
    print("scores     ", " ".join(f"{n}: {s:.2f}" for n, s in zip(LENGTHS, scores, strict=True)))

    # The policy is rewarded by the model alone.
    small = {"batch_size": 4, "group_size": 8, "max_response_length": 12}
    config = VeRLConfig(model="tiny", epochs=8, learning_rate=3e-3, **small)
    policy = VeRLTrainer(config, [RewardSpec(name="liked", fn=liked)])
    tasks = [f"Write line {task}." for task in range(30, 38)]
    before = await policy.evaluate(tasks, samples=4)
    await policy.train(tasks)
    after = await policy.evaluate(tasks, samples=4)
    print("reward     ", before.reward_interval, "->", after.reward_interval)


if __name__ == "__main__":
    asyncio.run(main())
