"""Pay a model for what you want: GRPO compares the answers to one prompt with each other.

    python examples/06_grpo.py

Prints:

    step  1  reward 0.05  entropy 5.52
    step  9  reward 0.19  entropy 5.30
    step 17  reward 0.60  entropy 4.08
    step 25  reward 0.92  entropy 2.46
    reward 0.05 -> 0.99; last epoch 0.98
"""

import asyncio

from orbiter.train import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer


def vowels(output: str) -> float:
    return sum(character in "aeiouAEIOU" for character in output) / max(1, len(output))


async def main() -> None:
    # "tiny" is built in code and has read nothing; "smollm2-135m" is a real model.
    config = VeRLConfig(
        algorithm=VeRLAlgorithm.GRPO,
        model="tiny",
        epochs=8,
        batch_size=8,  # prompts a step
        group_size=8,  # answers to each, compared with each other
        learning_rate=2e-3,
        max_response_length=16,
    )
    trainer = VeRLTrainer(config=config, rewards=[RewardSpec("vowels", weight=1.0, fn=vowels)])
    prompts = ["Say something.", "Sing."] * 16
    before = await trainer.evaluate(prompts[:2], samples=16)
    metrics = await trainer.train(prompts)
    after = await trainer.evaluate(prompts[:2], samples=16)
    for row in trainer.history[::8]:
        print(f"step {row['step']:>2}  reward {row['reward']:.2f}  entropy {row['entropy']:.2f}")
    print(f"reward {before.reward:.2f} -> {after.reward:.2f}; last epoch {metrics.reward:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
