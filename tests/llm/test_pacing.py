"""The pacing against servers of many kinds, in virtual time."""

from __future__ import annotations

import pytest

from tests.llm.pacing_world import World


@pytest.mark.parametrize("retry_after", [None, 0.1])
@pytest.mark.parametrize(("rate", "burst"), [(5, 5), (50, 5), (200, 20), (200, 200), (1000, 100)])
def test_nine_tenths_of_what_is_allowed_and_never_much_more(
    rate: float, burst: float, retry_after: float | None
) -> None:
    world = World(rate, burst, retry_after=retry_after)
    world.run(max(10.0, 300 / rate))
    assert world.throughput(0.0, max(10.0, 300 / rate)) >= 0.9
    assert world.worst_second() <= 1.2


def test_a_pause_that_is_asked_for_is_kept_by_all() -> None:
    world = World(200.0, 20.0, retry_after=1.0)
    world.run(5.0)
    first = world.refusals[0] + world.latency
    assert not [at for at in world.arrivals if first < at < first + 0.98]


def test_without_a_refusal_nothing_is_held_back() -> None:
    world = World(10_000.0, 10_000.0)
    world.run(1.0)
    assert len(world.answered) >= 0.95 * world.concurrency / world.latency
