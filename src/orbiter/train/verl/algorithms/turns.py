"""Arrange the trained tokens of each episode in the order of its turns, across its streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from orbiter.train.verl.algorithms.base import Samples


class EpisodeTokens(NamedTuple):
    """The positions in a batch of the trained tokens of E episodes, up to L tokens each."""

    position: Int[Tensor, "E L"]
    """Position in the batch's tensors, flattened; 0 after the end of an episode."""
    turn: Int[Tensor, "E L"]
    """The turn that sampled the token."""
    mask: Bool[Tensor, "E L"]
    """False after the end of an episode."""

    def gather(self, x: Float[Tensor, "B T"]) -> Float[Tensor, "E L"]:
        """Return the entries of a tensor of the batch, by episode; 0 after the end."""
        return x.flatten()[self.position].masked_fill(~self.mask, 0.0)

    def scatter(self, x: Float[Tensor, "E L"], shape: tuple[int, ...]) -> Float[Tensor, "B T"]:
        """Put entries back at their positions in a tensor of the batch; 0 everywhere else."""
        spread = x.new_zeros(shape).flatten()
        # Only real entries are written: the padding's position 0 is a real token.
        spread[self.position[self.mask]] = x[self.mask]
        return spread.view(shape)


def tokens_by_episode(samples: Samples) -> EpisodeTokens:
    """Return the trained tokens of each sample in the order of its turns."""
    import torch

    assert samples.turns is not None
    of_token = samples.turns.of_token
    episode = samples.sample_of_row[:, None].expand_as(of_token)[of_token >= 0]
    position = (of_token >= 0).flatten().nonzero()[:, 0]
    turn = of_token[of_token >= 0]
    # Tokens of a turn are in one row, so that their positions give their order.
    # Two stable sorts, the less significant key first, as in a radix sort.
    order = torch.argsort(turn, stable=True)
    order = order[torch.argsort(episode[order], stable=True)]
    lengths = torch.bincount(episode, minlength=int(samples.valid.sum()))
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    positions, turns = torch.zeros_like(mask).long(), torch.zeros_like(mask).long()
    positions[mask], turns[mask] = position[order], turn[order]
    return EpisodeTokens(positions, turns, mask)


def turn_rewards(samples: Samples, tokens: EpisodeTokens) -> Float[Tensor, "E L"]:
    """Put the reward of each turn on its last token."""
    import torch

    assert samples.turns is not None
    of_turn = samples.turns.reward[samples.valid].float().to(tokens.mask.device)
    # A turn never has number -1, so the last token always differs from what follows.
    follows = torch.cat([tokens.turn[:, 1:], tokens.turn.new_full((len(tokens.turn), 1), -1)], 1)
    ends = torch.cat([~tokens.mask[:, 1:], torch.ones_like(tokens.mask[:, :1])], 1)
    last = tokens.mask & (ends | (follows != tokens.turn))
    return of_turn.gather(1, tokens.turn) * last
