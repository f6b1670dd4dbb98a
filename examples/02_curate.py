"""Keep the good, drop the near-copies, and split without leaks.

    python examples/02_curate.py

14 captured, 13 good enough, 12 without near-copies
dropped: score 0.1 is below 0.5
dropped: shares 25 of 25 n-grams (1.000) with row 2
train, val, test: 10, 1, 1 (biggest group 4, leaks 0)
"""

from orbiter.train import TrajectoryItem, deduplicate, filter_by_score, split_dataset
from orbiter.train.synthesis import CurationReport, SplitReport

TASKS = [
    "Find two quiet places for a traveller who likes walking, a simple lunch on the way, and the "
    "last train home from {}",
    "Compare the three cheapest hotels in {}",
    "Say in one sentence what {} is known for",
]
CITIES = ["Vienna", "Graz", "Linz", "Salzburg"]


def captured() -> list[TrajectoryItem]:
    items = [
        TrajectoryItem(task.format(city), f"an answer about {city}", reward=0.9)
        for task in TASKS
        for city in CITIES
    ]
    wrong = TrajectoryItem("Compare the two airports of Linz", "there are three", reward=0.1)
    shouted = TrajectoryItem(items[2].state.upper(), "An answer about Linz", reward=0.7)
    return [*items, wrong, shouted]


def main() -> None:
    items = captured()
    left_out, split = CurationReport(), SplitReport()
    good = filter_by_score(items, min_score=0.5, report=left_out)
    unique = deduplicate(good, threshold=0.9, report=left_out)
    train, val, test = split_dataset(unique, ratios=[0.8, 0.1, 0.1], report=split)

    print(f"{len(items)} captured, {len(good)} good enough, {len(unique)} without near-copies")
    for drop in left_out.dropped:
        print(f"dropped: {drop.detail}")
    print(
        f"train, val, test: {len(train)}, {len(val)}, {len(test)} "
        f"(biggest group {split.biggest_group}, leaks {split.leaked})"
    )


if __name__ == "__main__":
    main()
