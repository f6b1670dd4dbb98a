"""The prefix store: the longest known prefix is found, memory is capped, old prefixes go first."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from orbiter.train.serve.prefix import PrefixStore

LAYERS, HEADS, WIDTH = 2, 3, 4
TOKEN_BYTES = 2 * LAYERS * HEADS * WIDTH * 4


def store(tokens: int) -> PrefixStore:
    return PrefixStore(
        torch.empty(0, HEADS, 1, WIDTH), LAYERS, limit_bytes=tokens * TOKEN_BYTES + 1
    )


def row_of(token_ids: list[int]) -> list[Tensor]:
    """Keys that tell the whole prefix: running sums of the token ids, another one in each layer."""
    sums = torch.tensor(token_ids, dtype=torch.float32).cumsum(0)
    return [
        (sums * (layer + 1)).expand(HEADS, WIDTH, -1).transpose(1, 2) for layer in range(LAYERS)
    ]


def check(kept: PrefixStore, token_ids: list[int]) -> int:
    """Compare what is kept of a row with what it should be; return how much is kept."""
    path = kept.match(token_ids)
    assert len(path) == kept.known(token_ids)
    for layer, want in enumerate(row_of(token_ids)):
        k, v = kept.read(layer, torch.tensor(path, dtype=torch.long))
        torch.testing.assert_close(k, want[:, : len(path)])
        torch.testing.assert_close(v, -want[:, : len(path)])
    return len(path)


def add(kept: PrefixStore, token_ids: list[int]) -> None:
    keys = row_of(token_ids)
    kept.add(token_ids, keys, [-k for k in keys])


def test_shared_beginnings_are_kept_once_and_found_again() -> None:
    kept = store(100)
    add(kept, [1, 2, 3, 4])
    add(kept, [1, 2, 7])
    add(kept, [1, 2, 3, 4, 5])
    assert kept.tokens == 6
    assert [check(kept, ids) for ids in ([1, 2, 3, 9], [1, 2, 7, 7], [2], [1, 2, 3, 4, 5])] == [
        3,
        3,
        0,
        5,
    ]


def test_the_prefix_used_longest_ago_goes_first() -> None:
    kept = store(8)
    add(kept, [1, 2, 3])
    add(kept, [4, 5, 6])
    check(kept, [1, 2, 3])
    add(kept, [7, 8, 9])
    assert check(kept, [1, 2, 3]) == check(kept, [7, 8, 9]) == 3
    assert check(kept, [4, 5, 6]) < 3


@pytest.mark.parametrize("limit", [0, 1, 5, 40, 300])
def test_whatever_comes_the_cap_holds_and_no_key_is_mixed_up(limit: int) -> None:
    numbers = random.Random(limit)
    kept = store(limit)
    rows: list[list[int]] = [[]]
    for _ in range(300):
        base = numbers.choice(rows)
        rows.append(
            base[: numbers.randint(0, len(base))]
            + [numbers.randint(0, 5) for _ in range(numbers.randint(1, 12))]
        )
        add(kept, rows[-1])
        assert kept.tokens <= limit
        check(kept, numbers.choice(rows))
        assert check(kept, rows[-1]) == min(len(rows[-1]), limit)
