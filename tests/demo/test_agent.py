from __future__ import annotations

from orbiter.train.demo.agent import answer_all
from orbiter.train.demo.check import score, verdict
from orbiter.train.demo.requests import ToolRequest


def test_the_reference_agent_is_wrong_in_exactly_a_quarter(requests: list[ToolRequest]) -> None:
    for seed in range(3):
        answers = answer_all(requests, seed=seed)
        wrong = [
            not verdict(answer, one).right for answer, one in zip(answers, requests, strict=True)
        ]
        assert sum(wrong) == 100


def test_its_mistakes_are_calls_that_look_right(requests: list[ToolRequest]) -> None:
    scores = [
        score(answer, one)
        for answer, one in zip(answer_all(requests, seed=0), requests, strict=True)
    ]
    assert min(scores) > 0
    assert sum(0.2 <= value < 1 for value in scores) > 60


def test_its_answers_follow_the_seed(requests: list[ToolRequest]) -> None:
    assert answer_all(requests, seed=1) == answer_all(requests, seed=1)
    assert answer_all(requests, seed=1) != answer_all(requests, seed=2)
