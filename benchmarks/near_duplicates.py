"""Near-duplicate removal: CPU seconds over all threads, peak memory, precision and recall.

    python benchmarks/near_duplicates.py            every corpus; takes some minutes
    python benchmarks/near_duplicates.py 100k       those whose name contains it

Ours against rensa and datasketch (pip install 'orbiter-train[bench]'), each measurement in a fresh
process, engines interleaved. Texts are read, and our compiled code is loaded, before the clock
starts; what loading takes is printed on its own line.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from machine import machine
from orbiter.train.synthesis.similarity import Measure, near_duplicates

MEASURE = Measure(0.9, 3)
PERMUTATIONS = 128
BEST, FIRST = "rensa, best public path (rho matrix)", "rensa, deduplicator that keeps the first"
SKETCH = "datasketch, MinHashLSH"
OURS = "ours"
COUNTABLE = ("5k short", "100k short")
"""Where brute force ends: shared preambles and long texts make it count for hours."""
TARGETS = {
    "1M short": {BEST: 3.3, FIRST: 4.5},
    "100k templated": {BEST: 3.5, FIRST: 3.5},
    "50k x 200 words": {BEST: 3.0, FIRST: 3.0},
    "100k short": {BEST: None, FIRST: None, SKETCH: 30.0},
}


def ours(texts: list[str]) -> set[int]:
    return set(near_duplicates(texts, MEASURE))


def rensa_first(texts: list[str]) -> set[int]:
    import rensa

    index = rensa.RMinHashDeduplicator(threshold=0.9, num_perm=PERMUTATIONS, use_lsh=True)
    kept = index.add_pairs((str(number), shingles(text)) for number, text in enumerate(texts))
    return {number for number, is_kept in enumerate(kept) if not is_kept}


def rensa_best(texts: list[str]) -> set[int]:
    import rensa

    sets = (shingles(text) for text in texts)
    matrix = rensa.RMinHash.digest_matrix_from_token_sets_rho(sets, PERMUTATIONS, 42)
    index = rensa.RMinHashLSH(0.9, PERMUTATIONS, 8)
    flags = index.query_duplicate_flags_matrix_one_shot(matrix)
    return {number for number, flag in enumerate(flags) if flag}


def datasketch_lsh(texts: list[str]) -> set[int]:
    import datasketch

    index = datasketch.MinHashLSH(threshold=0.9, num_perm=PERMUTATIONS)
    removed: set[int] = set()
    for first in range(0, len(texts), 2000):
        chunk = [[one.encode() for one in shingles(text)] for text in texts[first : first + 2000]]
        for number, sketch in enumerate(
            datasketch.MinHash.bulk(chunk, num_perm=PERMUTATIONS), first
        ):
            if index.query(sketch):
                removed.add(number)
            else:
                index.insert(number, sketch, check_duplication=False)
    return removed


ENGINES: dict[str, Callable[[list[str]], set[int]]] = {
    OURS: ours,
    BEST: rensa_best,
    FIRST: rensa_first,
    SKETCH: datasketch_lsh,
}


def shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[at : at + 3]) for at in range(len(words) - 2)] or [text]


def by_counting(texts: Iterable[str]) -> set[int]:
    """Brute force: count what a text shares with every kept one, shingle by shingle."""
    owners: dict[str, list[int]] = {}
    size: dict[int, int] = {}
    removed: set[int] = set()
    for number, text in enumerate(texts):
        mine = set(shingles(text))
        shared = Counter(other for one in mine for other in owners.get(one, ()))
        if any(10 * n >= 9 * (len(mine) + size[other] - n) for other, n in shared.items()):
            removed.add(number)
            continue
        size[number] = len(mine)
        for one in mine:
            owners.setdefault(one, []).append(number)
    return removed


def status(field: str) -> float:
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def measure_here(engine: str, path: str) -> None:
    texts = Path(path).read_text().split("\n")
    started = time.process_time()
    if engine == OURS:
        from orbiter.train.synthesis.similarity import compiled

        compiled.near_duplicates(texts[:300], MEASURE)
    loading = time.process_time() - started
    base = status("VmRSS")
    started, on_the_wall = time.process_time(), time.perf_counter()
    removed = ENGINES[engine](texts)
    cpu, wall = time.process_time() - started, time.perf_counter() - on_the_wall
    print(json.dumps([cpu, wall, status("VmHWM") - base, loading, sorted(removed)]))


def measured(engine: str, path: Path) -> list[float | list[int]]:
    command = [sys.executable, __file__, "--measure", engine, str(path)]
    environment = {**os.environ, "RAYON_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def make(name: str) -> list[str]:
    import corpora

    makers = {
        "5k short": lambda: corpora.prose(5_000, 10, 60, 1),
        "100k short": lambda: corpora.prose(100_000, 10, 60, 3),
        "100k templated": lambda: corpora.templated(100_000, 6),
        "50k x 200 words": lambda: corpora.prose(50_000, 180, 220, 4),
        "1M short": lambda: corpora.prose(1_000_000, 10, 60, 7),
    }
    return makers[name]()


def compare(name: str, folder: Path, rounds: int) -> float:
    texts = make(name)
    path = folder / f"{name}.txt"
    path.write_text("\n".join(texts))
    print(f"\n{name}: {len(texts):,} texts, {path.stat().st_size / 1e6:.0f} MB")
    engines = [OURS, *TARGETS.get(name, {})]
    results = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            results[engine].append(measured(engine, path))
    mine = results[OURS]
    exact = set(mine[0][4])
    truth = by_counting(texts) if name in COUNTABLE else None
    if truth is not None:
        print(f"  against brute force: {'identical' if truth == exact else 'DIFFERENT'}")
    for engine in engines:
        report(name, engine, results[engine], mine, exact)
    return median(one[0] for one in mine)


def report(name: str, engine: str, runs: list, mine: list, exact: set[int]) -> None:
    cpu = [run[0] for run in runs]
    removed = set(runs[0][4])
    line = (
        f"  {engine:42} {median(cpu):7.2f} CPU s ({min(cpu):.2f}-{max(cpu):.2f}), wall "
        f"{median(run[1] for run in runs):6.2f} s, peak {max(run[2] for run in runs):5.0f} MB, "
        f"removed {len(removed):,}"
    )
    if engine == OURS:
        print(f"{line}; loading the compiled code: {median(run[3] for run in runs):.2f} CPU s")
        return
    found = len(removed & exact)
    ratios = [theirs / own[0] for theirs, own in zip(cpu, mine, strict=True)]
    target = TARGETS[name][engine]
    judged = "" if target is None else f" (target {target}: {verdict(median(ratios), target)})"
    precision = f", P {found / max(1, len(removed)):.3f}" if engine != BEST else ""
    print(f"{line}{precision} R {found / max(1, len(exact)):.3f}")
    print(f"  {'':42} {median(ratios):7.1f} x ours ({min(ratios):.1f}-{max(ratios):.1f}){judged}")


def verdict(value: float, target: float) -> str:
    return "met" if value >= target else "MISSED"


def missing() -> Iterator[str]:
    return (name for name in ("rensa", "datasketch", "wordfreq") if find_spec(name) is None)


def main() -> None:
    if absent := list(missing()):
        print(f"not installed: {', '.join(absent)}; run: pip install 'orbiter-train[bench]'")
        return
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print(f"{machine()}; medians, in brackets least and most")
    cpu: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("5k short", *reversed(TARGETS)):
            if wanted in name:
                cpu[name] = compare(name, Path(folder), rounds=2 if name == "1M short" else 3)
    if {"100k short", "1M short"} <= cpu.keys():
        exponent = math.log10(cpu["1M short"] / cpu["100k short"])
        print(
            f"\nscaling exponent from 100k to 1M: {exponent:.2f} (target <= 1.15: "
            f"{'met' if exponent <= 1.15 else 'MISSED'})"
        )


if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure_here(*sys.argv[2:])
    else:
        main()
