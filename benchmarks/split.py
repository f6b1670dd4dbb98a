"""`split_dataset` of a million items with group and near-duplicate edges, against `deduplicate`.

    python benchmarks/split.py

CPU seconds over all threads, both on the same items in the same process, interleaved.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from statistics import median

from machine import machine
from orbiter.train.synthesis import SplitReport, deduplicate, split_dataset
from orbiter.train.trajectory import TrajectoryItem

COUNT, ROUNDS, TARGET = 1_000_000, 3, 2.5


def main() -> None:
    if find_spec("wordfreq") is None:
        print("not installed: wordfreq; run: pip install 'orbiter-train[bench]'")
        return
    import corpora

    items = [
        TrajectoryItem(text, "done", 0.5, task_id=f"task {number // 4}")
        for number, text in enumerate(corpora.prose(COUNT, 10, 60, 7))
    ]
    deduplicate(items[:5_000])
    split_dataset(items[:5_000])
    ratios, ours, theirs = [], [], []
    for _ in range(ROUNDS):
        started = time.process_time()
        kept = len(deduplicate(items))
        between = time.process_time()
        parts = split_dataset(items)
        ours.append(time.process_time() - between)
        theirs.append(between - started)
        ratios.append(ours[-1] / theirs[-1])
    report = SplitReport()
    split_dataset(items, report=report)
    print(
        f"{machine()}; "
        f"{COUNT:,} items in tasks of 4, {COUNT - kept:,} "
        "near-duplicates; medians, in brackets least and most"
    )
    print(f"  deduplicate    {median(theirs):6.2f} CPU s ({min(theirs):.2f}-{max(theirs):.2f})")
    print(
        f"  split_dataset  {median(ours):6.2f} CPU s ({min(ours):.2f}-{max(ours):.2f}), parts of "
        f"{', '.join(f'{len(part):,}' for part in parts)}"
    )
    print(
        f"  ratio          {median(ratios):6.2f} ({min(ratios):.2f}-{max(ratios):.2f}), target <= "
        f"{TARGET}: {'met' if median(ratios) <= TARGET else 'MISSED'}"
    )
    print(f"  {report}")


if __name__ == "__main__":
    main()
