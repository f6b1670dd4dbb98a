"""The pipeline's own search for repetitions compares what an item adds to its instructions."""

from __future__ import annotations

from orbiter.train import TrajectoryItem
from orbiter.train.synthesis.pipeline.repetition import Repetitions

RULES = " ".join(f"Rule {i}: always do thing {i} before you answer." for i in range(25))
OTHER = " ".join(f"You are the pilot of ship {i} and never land in port {i}." for i in range(25))


def item(question: str, answer: str, system: str = RULES) -> TrajectoryItem:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return TrajectoryItem(f"[system]\n{system}\n\n[user]\n{question}", answer, messages=messages)


def sums(start: int, count: int) -> list[TrajectoryItem]:
    return [item(f"What is {a} plus {a * 7}?", str(a * 8)) for a in range(start, start + count)]


def test_different_tasks_behind_one_system_prompt_repeat_nothing() -> None:
    found = Repetitions(0.7, sums(0, 5))
    assert found.admit(sums(5, 40)) == [None] * 40


def test_the_same_task_repeats_a_seed_or_an_accepted_item() -> None:
    found = Repetitions(0.7, [*sums(0, 3), item("Why is the sky blue at noon?", "It scatters.")])
    again = item("Why is the sky blue at noon?", "It scatters.")
    (repeats,) = found.admit([again])
    assert repeats is not None
    assert (repeats.seed, repeats.similarity) == (3, 1.0)
    first, second = found.admit([item("Who wrote Faust, part one?", "Goethe.")] * 2)
    assert first is None
    assert second is not None
    assert second.seed is None


def test_items_under_different_instructions_are_never_alike() -> None:
    found = Repetitions(0.7, [item("Where do we land?", "There.", RULES)])
    assert found.admit([item("Where do we land?", "There.", OTHER)]) == [None]
    (repeats,) = found.admit([item("Where do we land?", "There.", f"{RULES} Today is Monday.")])
    assert repeats is not None
    assert repeats.seed == 0


def test_items_without_instructions_are_compared_by_their_whole_text() -> None:
    found = Repetitions(0.7, [TrajectoryItem("a b c d e f", "g h i j")])
    one, two = found.admit([TrajectoryItem("a b c d e f", "g h i"), TrajectoryItem("x y z", "w")])
    assert one is not None
    assert two is None
