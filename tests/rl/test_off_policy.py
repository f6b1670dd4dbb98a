from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from orbiter.train.errors import ConfigError
from orbiter.train.rl.off_policy import (
    awr_weight,
    effective_sample_size,
    episode_log_ratio,
    topr_weight,
    truncated_weight,
)

VOCABULARY, LENGTH = 3, 2
SEQUENCES = list(itertools.product(range(VOCABULARY), repeat=LENGTH))


def log_probabilities(parameters: Tensor) -> Tensor:
    """Return the log probability of each token of every sequence, as [sequences, tokens].

    The second token's distribution depends on the first token.
    """
    first = parameters[0].log_softmax(-1)
    rows = []
    for sequence in SEQUENCES:
        second = parameters[1 + sequence[0]].log_softmax(-1)
        rows.append(torch.stack([first[sequence[0]], second[sequence[1]]]))
    return torch.stack(rows)


def setting() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1 + VOCABULARY, VOCABULARY)
    present = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    sampler = torch.randn(shape, generator=generator, dtype=torch.float64)
    reward = torch.randn(len(SEQUENCES), generator=generator, dtype=torch.float64)
    return present, sampler, reward


def estimate(limit: float) -> tuple[Tensor, Tensor]:
    """Return the exact expectation of the estimated gradient over the sampler, and the truth."""
    present, sampler, reward = setting()
    now, old = log_probabilities(present), log_probabilities(sampler)
    (truth,) = torch.autograd.grad((now.sum(-1).exp() * reward).sum(), present)
    now = log_probabilities(present)
    ratio = episode_log_ratio(
        now, old, torch.ones_like(now, dtype=torch.bool), torch.arange(9), episodes=9
    )
    weight = truncated_weight(ratio, limit=limit)
    surrogate = (old.sum(-1).exp() * weight * reward * now.sum(-1)).sum()
    return torch.autograd.grad(surrogate, present)[0], truth


def test_the_untruncated_estimate_is_unbiased_and_a_truncated_one_is_not() -> None:
    untruncated, truth = estimate(math.inf)
    assert torch.allclose(untruncated, truth, atol=1e-12)
    truncated, _ = estimate(1.0)
    assert float((truncated - truth).norm() / truth.norm()) > 0.05


def test_an_episode_is_the_sum_over_its_rows_and_only_of_sampled_tokens() -> None:
    now = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, -4.0, -1.0], [-3.0, -1.0, -1.0]])
    old = torch.tensor([[-2.0, -2.5, math.nan], [-1.0, -3.0, -1.0], [-3.0, -1.5, 5.0]])
    mask = torch.tensor([[True, True, False], [False, True, True], [True, True, False]])
    ratio = episode_log_ratio(now, old, mask, torch.tensor([1, 0, 1]), episodes=2)
    assert ratio.tolist() == pytest.approx([-1.0, 1.5 + 0.5])


def test_no_gradient_runs_through_a_weight() -> None:
    now = torch.zeros(1, 2, requires_grad=True)
    ratio = episode_log_ratio(
        now, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]), episodes=1
    )
    assert not truncated_weight(ratio, limit=2.0).requires_grad


def test_weights_are_cut_at_their_limit_and_nowhere_else() -> None:
    ratio = torch.tensor([0.5, 1.0, 1.9, 8.0]).log()
    assert truncated_weight(ratio, limit=2.0).tolist() == pytest.approx([0.5, 1.0, 1.9, 2.0])
    assert truncated_weight(ratio, limit=math.inf).tolist() == pytest.approx([0.5, 1, 1.9, 8])
    with pytest.raises(ConfigError, match="above 0"):
        truncated_weight(ratio, limit=0.0)


def test_topr_imitates_what_was_good_and_tapers_only_what_was_bad() -> None:
    ratio = torch.tensor([0.1, 5.0, 0.1, 5.0, 0.1]).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0])
    assert topr_weight(ratio, advantage).tolist() == pytest.approx([1.0, 1.0, 0.1, 1.0, 1.0])


def test_awr_weights_by_the_exponential_of_the_advantage() -> None:
    advantage = torch.tensor([-1.0, 0.0, 1.0, 100.0])
    weights = awr_weight(advantage, temperature=2.0, limit=20.0).tolist()
    assert weights == pytest.approx([math.exp(-0.5), 1.0, math.exp(0.5), 20.0])
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        awr_weight(advantage, temperature=0.0, limit=20.0)


@pytest.mark.parametrize(
    ("weights", "size"),
    [([1.0] * 5, 5.0), ([1.0, 0.0, 0.0], 1.0), ([1.0, 2.0, 3.0], 36 / 14), ([7.0], 1.0)],
)
@pytest.mark.parametrize("scale", [1.0, 1e200])
def test_the_effective_size_is_that_of_kong(
    weights: list[float], size: float, scale: float
) -> None:
    logs = torch.tensor(weights, dtype=torch.float64).log() + math.log(scale)
    assert float(effective_sample_size(logs)) == pytest.approx(size)
