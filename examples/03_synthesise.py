"""Make 8 new questions: good ones, unlike one another and unlike the seed; then let a finger slip.

    python examples/03_synthesise.py

8 of 12 made, stopped by: target
rejected: {'score': 3, 'duplicate_of_seed': 1}
  0.50 Explain generators to a beginner, with one example
  0.56 Would you learn generators or asyncio first?
  0.59 Would you learn closures or typing first?
with slips: Would you learn grenerators ort asyncio fiirs?
"""

import asyncio

from orbiter.train import (
    SynthesisConfig,
    SynthesisPipeline,
    TemplateSynthesiser,
    TrajectoryItem,
    augment_add_noise,
)


def brevity(item: TrajectoryItem) -> float:
    """Score a question between 0 and 1: the shorter, the better."""
    return max(0.0, 1 - len(item.state) / 100)


async def main() -> None:
    questions = TemplateSynthesiser(
        templates=[
            "Explain {topic} to {reader}, with one example",
            "Would you learn {topic} or {other} first?",
        ],
        variables={
            "topic": ["decorators", "generators", "closures"],
            "other": ["asyncio", "typing"],
            "reader": ["a beginner", "a colleague who knows nothing but Java"],
        },
    )
    seeds = [TrajectoryItem("Explain closures to a beginner, with one example", "")]
    config = SynthesisConfig(target_size=8, min_score=0.5, dedup_threshold=0.9)
    pipeline = SynthesisPipeline(config=config, scorer=brevity).add_step(questions)
    result = await pipeline.run(seeds)

    print(f"{len(result.items)} of {result.generated_count} made, stopped by: {result.stop_reason}")
    print(f"rejected: {result.rejected}")
    for item in result.items[:3]:
        print(f"  {item.reward:.2f} {item.state}")
    (noisy,) = augment_add_noise(list(result.items[1:2]), noise_level=0.1)
    print(f"with slips: {noisy.state}")


if __name__ == "__main__":
    asyncio.run(main())
