"""Record an agent's steps, score the episode at its end, and export what is worth training on.

    python examples/01_capture.py

Prints:

    2 kept, rewards [0.5, 1.0]
    after reopening: 2 items, 0 waiting
    exported 2 items, read back 2
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from orbiter.train import TrajectoryDataset, TrajectoryItem, TrajectoryStrategy


class WorthLearning(TrajectoryStrategy):
    """Keep the steps that led somewhere."""

    def should_capture(self, item: TrajectoryItem) -> bool:  # noqa: D102 - as in the base class
        return item.reward is not None and item.reward >= 0.5


def main(folder: Path) -> None:
    journal = folder / "journal"
    with TrajectoryDataset(strategy=WorthLearning(), path=journal) as dataset:
        state = "Find the capital of France."
        for step, action in enumerate(["search('France')", "open(1)", "answer('Paris')"]):
            dataset.capture(TrajectoryItem(state, action, episode_id="e1", step=step))
            state += f"\n> {action}\nDone."
        kept = dataset.assign_reward("e1", reward=1.0, gamma=0.5)  # known only now
        print(f"{len(kept)} kept, rewards {[item.reward for item in kept]}")

    with TrajectoryDataset(path=journal) as dataset:
        print(f"after reopening: {len(dataset)} items, {len(dataset.waiting)} waiting")
        exported = dataset.export_jsonl(folder / "items.jsonl")

    again = TrajectoryDataset.from_jsonl(folder / "items.jsonl")
    print(f"exported {exported} items, read back {len(again)}")


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
