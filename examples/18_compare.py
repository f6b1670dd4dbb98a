"""Compare two models on the same items, and decide whether the new one may be shipped.

python examples/18_compare.py

100 items, looks after 20, 40, 60, 80, 100, together 95% confidence
after  20 items: 0.7 [-0.263, 0.954] (n=20)
stopped after 40 of 100 items: 0.575 [0.137, 0.812] (n=40)
names: -0.25 [-0.733, 0.429] (n=12)
sums: 0.929 [0.277, 0.992] (n=28)
verdict: met
"""

import asyncio

from orbiter.train import RewardSpec, TrajectoryItem
from orbiter.train.comparison import compare

ITEMS = [
    TrajectoryItem(f"{n} + 1", str(n + 1), metadata={"task_type": "sums"})
    if n % 3
    else TrajectoryItem(f"name {n}", "Ann", metadata={"task_type": "names"})
    for n in range(100)
]


async def old(messages: list[dict[str, str]]) -> str:
    """Knows names, and small sums."""
    asked = messages[-1]["content"]
    if asked.startswith("name"):
        return "Ann"
    return str(int(asked.split()[0]) + 1) if len(asked) < 6 else "many"


async def new(messages: list[dict[str, str]]) -> str:
    """Knows every sum, and fewer names."""
    asked = messages[-1]["content"]
    if asked.startswith("name"):
        return "Ann" if len(asked) % 2 else "Bob"
    return str(int(asked.split()[0]) + 1)


def exact(output: str, item: TrajectoryItem) -> float:
    """Return 1 for the right answer."""
    return float(output == item.action)


if __name__ == "__main__":
    found = asyncio.run(
        compare(
            old, new, ITEMS, [RewardSpec("exact", fn=exact)], require=["reward > 0"],
            on_plan=lambda plan: print(plan.lines[0]),
            on_look=lambda found: print(f"after  {found.items} items: {found.difference}"),
        )
    )  # fmt: skip
    print(f"stopped after {found.items} of {len(ITEMS)} items: {found.difference}")
    for part in found.slices:
        print(f"{part.value}: {part.difference}")
    print(f"verdict: {found.verdict}")
