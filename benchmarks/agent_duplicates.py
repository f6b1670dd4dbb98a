"""Precision and recall of `deduplicate` on agents' episodes with planted duplicates.

    python benchmarks/agent_duplicates.py

200 tasks behind one system prompt of 225 words, each an episode of four steps whose prompt repeats
all that went before. A quarter of the episodes is run again unchanged, another quarter with two
of the 40 words of the task reworded. Everything else is a different task and must stay.
"""

from __future__ import annotations

import random
from collections import Counter

from orbiter.train.synthesis import deduplicate
from orbiter.train.trajectory import TrajectoryItem

TASKS, STEPS, WORDS, REWORDED = 200, 4, 40, 2
SYSTEM = " ".join(f"Rule {n}: always do thing {n} before you answer." for n in range(25))
VOCABULARY = [f"word{n}" for n in range(3000)]


def sentence(seed: object, length: int) -> str:
    return " ".join(random.Random(str(seed)).choices(VOCABULARY, k=length))


def reworded(task: str, seed: int) -> str:
    words, draw = task.split(), random.Random(seed)
    for _ in range(REWORDED):
        words[draw.randrange(len(words))] = draw.choice(VOCABULARY)
    return " ".join(words)


def episode(task: str, name: str, number: int) -> list[TrajectoryItem]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    items = []
    for step in range(STEPS):
        state = "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in messages)
        action = "look up " + sentence((number, step, "call"), 4)
        items.append(
            TrajectoryItem(state, action, 1.0, episode_id=name, step=step, messages=list(messages))
        )
        messages += [
            {"role": "assistant", "content": action},
            {"role": "tool", "content": sentence((number, step, "result"), 15)},
        ]
    return items


def data() -> tuple[list[TrajectoryItem], set[str]]:
    items: list[TrajectoryItem] = []
    planted: set[str] = set()
    for number in range(TASKS):
        task = sentence(number, WORDS)
        items += episode(task, f"task {number}", number)
        if number % 4 < 2:
            kind = ("again", "reworded")[number % 4]
            name = f"{kind} {number}"
            again = task if kind == "again" else reworded(task, number)
            items += episode(again, name, number)
            planted.add(name)
    return items, planted


def main() -> None:
    items, planted = data()
    print(f"{len(items)} steps in {TASKS + len(planted)} episodes, {len(planted)} duplicates")
    for unit in ("episode", "step", "text"):
        for threshold in (0.9, 0.8, 0.7):
            kept = Counter(
                item.episode_id for item in deduplicate(items, threshold, unit=unit, keep="first")
            )
            gone = {str(item.episode_id) for item in items} - kept.keys()
            right = gone & planted
            kinds = Counter(name.split()[0] for name in right)
            print(
                f"  unit={unit:8} threshold={threshold}  "
                f"P {len(right) / max(1, len(gone)):.3f}  R {len(right) / len(planted):.3f}  "
                f"(again {kinds['again']}/50, reworded {kinds['reworded']}/50), "
                f"episodes with holes: {sum(count < STEPS for count in kept.values())}"
            )


if __name__ == "__main__":
    main()
