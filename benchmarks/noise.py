"""Typing noise: texts a CPU second against nlpaug and textnoisr, and what is left of JSON calls.

    python benchmarks/noise.py

All three put the same strength on the same texts of 200 characters, one after the other in every
round, so that a busy machine slows all of them; the ratio is the median over the rounds.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import time
from collections.abc import Callable

from machine import machine
from orbiter.train.synthesis import augment_add_noise

ROUNDS, TEXTS, LEVEL = 7, 2000, 0.1
TARGET = 5.0
SENTENCE = (
    "the quick agent wrote answers about python decorators while another reader asked for simple "
    "explanations and more examples please because of memory ordering I cannot say why that is so"
)
WORDS = SENTENCE.split()


def prose(rng: random.Random, size: int = 200) -> str:
    words: list[str] = []
    while sum(map(len, words)) + len(words) < size:
        words.append(rng.choice(WORDS))
    return " ".join(words)[:size]


def call(rng: random.Random) -> str:
    arguments = {"city": rng.choice(WORDS), "days": rng.randint(1, 9), "note": prose(rng, 40)}
    return json.dumps({"name": "get_weather", "arguments": arguments})


def peers() -> dict[str, Callable[[list[str]], list[str]]]:
    found: dict[str, Callable[[list[str]], list[str]]] = {}
    try:
        from nlpaug.augmenter.char import RandomCharAug

        # One slip in six words of ten: on these texts a character error rate of 0.10.
        nlpaug = RandomCharAug(aug_char_min=1, aug_char_max=1, aug_word_p=0.6, aug_word_max=None)
        found["nlpaug"] = lambda texts: [nlpaug.augment(text)[0] for text in texts]
    except ImportError as error:
        print(f"nlpaug is missing ({error}): pip install nlpaug gdown")
    try:
        from textnoisr.noise import CharNoiseAugmenter

        textnoisr = CharNoiseAugmenter(noise_level=LEVEL, seed=0)
        found["textnoisr"] = lambda texts: [str(textnoisr.add_noise(text)) for text in texts]
    except ImportError as error:
        print(f"textnoisr is missing ({error}): pip install textnoisr")
    return found


def ours(texts: list[str]) -> list[str]:
    rows = [{"input": text, "output": "x", "score": 1.0} for text in texts]
    return [str(row["input"]) for row in augment_add_noise(rows, LEVEL)]


def cpu_seconds(fn: Callable[[list[str]], list[str]], texts: list[str]) -> float:
    start = time.process_time()
    fn(texts)
    return time.process_time() - start


def call_in(text: str) -> object:
    """Return the JSON call in a text, or None where it does not parse any more."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        return json.loads(found.group()) if found else None
    except ValueError:
        return None


def main() -> None:
    rng = random.Random(0)
    texts = [prose(rng) for _ in range(TEXTS)]
    engines = {"orbiter (whole rows)": ours, **peers()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for fn in engines.values():
        fn(texts[:50])  # whatever is loaded or prepared once
    for _ in range(ROUNDS):
        for name, fn in engines.items():
            seconds[name].append(cpu_seconds(fn, texts))
    print(f"{machine()}, one core")
    print(f"{TEXTS} texts of 200 characters, noise {LEVEL}, {ROUNDS} interleaved rounds, CPU time")
    own = seconds["orbiter (whole rows)"]
    for name, taken in seconds.items():
        ratios = sorted(theirs / mine for theirs, mine in zip(taken, own, strict=True))
        print(
            f"  {name:22} {TEXTS / statistics.median(taken):9,.0f} texts/s"
            f"   {statistics.median(ratios):5.2f} x our time ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    print(f"  target: each peer takes at least {TARGET} x our time")
    calls = [f"{prose(rng, 100)} {call(rng)} {prose(rng, 60)}" for _ in range(TEXTS)]
    before = list(map(call_in, calls))
    print(f"JSON tool calls that still parse, and that still say the same, of {TEXTS}")
    for name, fn in engines.items():
        after = list(map(call_in, fn(calls)))
        whole = sum(call is not None for call in after)
        same = sum(one == other for one, other in zip(before, after, strict=True))
        print(f"  {name:22} {whole / TEXTS:8.1%} {same / TEXTS:8.1%}")
    print("  target: all of ours, both")


if __name__ == "__main__":
    main()
