"""The chunked comparison of two heads is that of plain autograd over full logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orbiter.train.engine.forward import head
from orbiter.train.engine.forward.teacher_head import HeadInput, TaughtScores, taught_scores
from orbiter.train.errors import TrainingError

N, H, TAUGHT, V = 7, 5, 3, 11


def case(teacher_tokens: int = V) -> tuple[HeadInput, HeadInput, Tensor]:
    """A student and a teacher of another width, in float64."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    student = HeadInput(random(N, H).requires_grad_(), random(V, H).requires_grad_())
    teacher = HeadInput(random(N, TAUGHT), random(teacher_tokens, TAUGHT))
    return student, teacher, torch.randint(V - 2, (N,), generator=draw)


def plain(
    student: HeadInput, teacher: HeadInput, token_ids: Tensor, temperature: float, beta: float
) -> TaughtScores:
    """The same through full logits, the formula written out again."""
    assert student.weight is not None
    assert teacher.weight is not None
    common = min(len(student.weight), len(teacher.weight))
    p, q = (
        (x.hidden @ x.weight[:common].t() / temperature).softmax(-1)  # type: ignore[index]
        for x in (student, teacher)
    )
    m = beta * q + (1 - beta) * p
    if beta == 0:
        divergence = (q * (q / p).log()).sum(-1)
    elif beta == 1:
        divergence = (p * (p / q).log()).sum(-1)
    else:
        divergence = beta * (q * (q / m).log()).sum(-1) + (1 - beta) * (p * (p / m).log()).sum(-1)
    logprob = p.gather(1, token_ids[:, None])[:, 0].log()
    return TaughtScores(logprob, -(p * p.log()).sum(-1), divergence)


@pytest.mark.parametrize("teacher_tokens", [V, V - 2, V + 4])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_scores_and_gradients_are_those_of_full_logits(
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    temperature: float,
    beta: float,
    teacher_tokens: int,
) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", V * rows)
    student, teacher, token_ids = case(teacher_tokens)
    ours = taught_scores(student, teacher, token_ids, temperature=temperature, beta=beta)
    want = plain(student, teacher, token_ids, temperature, beta)
    torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-12)
    slopes = [torch.linspace(a, b, N, dtype=torch.float64) for a, b in ((-1, 2), (3, -1), (1, 2))]
    losses = [
        sum((score * slope).sum() for score, slope in zip(scores, slopes, strict=True))
        for scores in (ours, want)
    ]
    mine, theirs = (torch.autograd.grad(loss, student) for loss in losses)  # type: ignore[arg-type]
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_a_model_that_makes_its_own_logits_has_the_same_gradient() -> None:
    student, teacher, token_ids = case(V - 2)
    assert student.weight is not None
    assert teacher.weight is not None
    logits = HeadInput((student.hidden @ student.weight.t()).detach().requires_grad_(), None)
    taught = HeadInput(teacher.hidden @ teacher.weight.t(), None)
    ours = taught_scores(logits, taught, token_ids, temperature=0.6, beta=0.3)
    want = taught_scores(student, teacher, token_ids, temperature=0.6, beta=0.3)
    torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-12)
    (slope,) = torch.autograd.grad(ours.divergence.sum(), logits.hidden)
    (by_state,) = torch.autograd.grad(want.divergence.sum(), student.hidden)
    torch.testing.assert_close(slope @ student.weight, by_state, rtol=1e-9, atol=1e-12)


def test_a_frozen_head_and_the_teacher_get_no_gradient() -> None:
    student, teacher, token_ids = case()
    assert student.weight is not None
    frozen = HeadInput(student.hidden, student.weight.detach())
    taught_scores(frozen, teacher, token_ids, temperature=1.0, beta=0.5).divergence.sum().backward()
    assert student.hidden.grad is not None
    assert student.weight.grad is None
    assert teacher.hidden.grad is None


def test_a_token_that_one_of_them_does_not_have_is_refused_by_its_number() -> None:
    student, teacher, token_ids = case(V - 2)
    token_ids[2] = V - 1
    with pytest.raises(TrainingError, match=r"token 10 has no logit .* 11 entries, .* 9"):
        taught_scores(student, teacher, token_ids, temperature=1.0, beta=0.5)


def test_no_token_is_no_score() -> None:
    student, teacher, token_ids = case()
    assert student.weight is not None
    none = HeadInput(student.hidden[:0], student.weight)
    scores = taught_scores(none, teacher, token_ids[:0], temperature=1.0, beta=0.5)
    assert [len(score) for score in scores] == [0, 0, 0]
