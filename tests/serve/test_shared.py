"""Reading a common beginning once for all rows gives the logits of reading it for each row."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.serve import decoding as module
from orbiter.train.serve.decoding import Slots
from orbiter.train.serve.shared import common_length

BEGINNING = [random.Random(0).randrange(200) for _ in range(90)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    loaded = load_model("tiny", device="cpu")
    return make_policy(loaded.model, loaded.tokenizer, device="cpu", dtype="float32")


def decode(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, worth: int
) -> tuple[list[Tensor], set[int]]:
    """Decode rows that join and leave; return all logits, and the lengths that were shared."""
    monkeypatch.setattr(module, "WORTH_SHARING", worth)
    slots = module.decoding(policy, cache_bytes=1 << 20, snapshot=True)
    assert isinstance(slots, Slots)
    logits: list[Tensor] = []
    shared: set[int] = set()

    def steps(rows: int, count: int) -> None:
        for number in range(count):
            logits.append(slots.step(torch.arange(rows) + 20 + number).clone())
            shared.add(len(slots._shared.token_ids) if slots._shared else 0)

    slots.join([[*BEGINNING, *range(n)] for n in (1, 4, 9)], [2, 1, 1])
    steps(4, 3)
    # A row with half of the beginning joins, then leaves; another one has nothing in common.
    slots.join([BEGINNING[:40] + [7] * 12], [1])
    steps(5, 2)
    slots.keep([3, 0, 2])
    steps(3, 2)
    slots.join([[199, 3, 3]], [1])
    steps(4, 2)
    slots.keep([0])
    steps(1, 1)
    return logits, shared


def test_rows_that_join_and_leave_get_the_same_logits(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart, nothing = decode(policy, monkeypatch, worth=1 << 40)
    together, lengths = decode(policy, monkeypatch, worth=1)
    assert nothing == {0}
    # Two rows of the first prompt begin with the same 91 tokens; all four share 91, then 40.
    assert lengths == {91, 40, 0}
    for mine, right in zip(together, apart, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4)


def test_a_short_beginning_is_not_worth_a_second_product(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four rows save three times the beginning.
    assert 0 in decode(policy, monkeypatch, worth=3 * 91 + 1)[1]
    assert 91 in decode(policy, monkeypatch, worth=3 * 91)[1]
    assert 91 not in decode(policy, monkeypatch, worth=3 * 91 + 1)[1]


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[1, 2, 3]], 3),
        ([[1, 2, 3], [1, 2, 3]], 3),
        ([[1, 2, 3], [1, 2]], 2),
        ([[1, 2, 3], [1, 9, 3], [1, 2, 3, 4]], 1),
        ([[5], [1, 2]], 0),
        ([[1], []], 0),
    ],
)
def test_the_common_beginning_is_that_of_all_rows(rows: Sequence[list[int]], length: int) -> None:
    assert common_length(rows) == length
