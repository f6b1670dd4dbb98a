"""Derive independent random streams from one seed.

Every random act uses a stream keyed by its purpose, never a shared one, so that concurrency,
caching, a failure or a resume cannot shift the draws of another act.
"""

from __future__ import annotations

import hashlib
import random


def sub_seed(seed: int, *key: str | int) -> int:
    """Return a 63-bit seed for the act named by `key`, the same in every process and release.

    It is a BLAKE2b hash of the key's parts; `hash()` would differ between interpreters.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sub_random(seed: int, *key: str | int) -> random.Random:
    """Return a separate generator for the act named by `key`."""
    return random.Random(sub_seed(seed, *key))
