"""Sub-seeds: one number from the user becomes as many independent streams as are needed.

Every random act takes a stream keyed by what it is for, never a shared one, so that concurrency,
caching, a failure or a resume cannot shift anybody else's draws.
"""

from __future__ import annotations

import hashlib
import random


def sub_seed(seed: int, *key: str | int) -> int:
    """Return a 63-bit seed for the act named by `key`: the same in every process and release.

    `hash()` would differ from one interpreter to the next; BLAKE2b of the key's parts does not.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sub_random(seed: int, *key: str | int) -> random.Random:
    """Return a generator of its own for the act named by `key`."""
    return random.Random(sub_seed(seed, *key))
