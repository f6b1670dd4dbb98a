"""Imitate what a good agent did: supervised fine-tuning on captured actions.

    python examples/05_sft.py

Prints:

    loss 5.53 -> 0.02 nats a token
    What is red?     a colour
    What is a cat?   an animal
    What is oak?     a tree
    What is gold?    a metal
"""

import asyncio

from orbiter.train import SFTConfig, SFTTrainer, TrajectoryItem

LABELS = {"red": "a colour", "a cat": "an animal", "oak": "a tree", "gold": "a metal"}


async def main() -> None:
    good = [TrajectoryItem(f"What is {what}?", answer, 1.0) for what, answer in LABELS.items()]
    bad = [TrajectoryItem(item.state, "no idea", 0.0) for item in good]
    # "tiny" is built in code and has read nothing; "smollm2-135m" is a real model.
    config = SFTConfig(
        model="tiny",
        epochs=40,
        batch_size=4,
        learning_rate=3e-3,
        max_response_length=16,
        min_reward=0.5,  # the bad answers are not imitated
    )
    trainer = SFTTrainer(config, dataset=good + bad)
    before = await trainer.evaluate(good)
    await trainer.train()
    after = await trainer.evaluate(good)
    print(f"loss {before.loss:.2f} -> {after.loss:.2f} nats a token")
    for item, said in zip(good, await trainer.generate(good), strict=True):
        print(f"{item.state:<16} {said}")


if __name__ == "__main__":
    asyncio.run(main())
