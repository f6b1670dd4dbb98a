"""Prefer the better of two answers: DPO on answers that were scored.

python examples/17_preferences.py   (prints, for instance)
"""

import asyncio

from orbiter.train import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer, TrajectoryItem

COLOURS = ("red", "blue", "green", "gold", "pink", "black", "white", "grey")
GOOD, BAD = "It is {}.", "I would say it is {}!"


def scored(colours: tuple[str, ...]) -> list[TrajectoryItem]:
    """Two answers to each question; the short one got the reward."""
    return [
        TrajectoryItem(f"Name {colour}.", answer.format(colour), reward)
        for colour in colours
        for answer, reward in ((GOOD, 1.0), (BAD, 0.0))
    ]


async def main() -> None:
    train, held_out = scored(COLOURS[:6]), scored(COLOURS[6:])
    imitation = SFTTrainer(SFTConfig(model="tiny", epochs=30, learning_rate=3e-3), dataset=train)
    await imitation.train()  # imitates both kinds of answers alike
    folder = await imitation.save("build/example-17")

    config = PreferenceConfig(model=str(folder), epochs=10, batch_size=3, learning_rate=3e-4)
    trainer = PreferenceTrainer(config, dataset=train)
    await trainer.train()
    measured = await trainer.evaluate(held_out)
    low, high = measured["accuracy_low"], measured["accuracy_high"]
    print(f"ranked right {measured.accuracy:.0%} [{low:.0%}, {high:.0%}] of {len(held_out) // 2}")
    for who, model in (("before", imitation), ("after", trainer)):
        answers = await model.generate(
            [item.state for item in train], temperature=1.0, samples=4, max_response_length=32
        )
        short = sum(answer.startswith("It is") for answer in answers) / len(answers)
        print(f"{who:6} {short:.0%} of the answers begin with 'It is'")


if __name__ == "__main__":
    asyncio.run(main())
