"""Credit assignment for each turn of an episode: its later rewards, compared with other episodes.

Axes: P tasks, G episodes of each, K turns of each. `valid` is False for turns that an episode does
not have, and for episodes that do not count; those entries may hold anything.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.errors import DataError
from orbiter.train.rl.advantage import Gae, gae
from orbiter.train.rl.masked import all_equal, masked_mean, masked_var, only


def returns_to_go(
    reward: Float[Tensor, "P G K"], valid: Bool[Tensor, "P G K"], *, gamma: float = 1.0
) -> Float[Tensor, "P G K"]:
    """Return the discounted sum of the rewards from each turn on.

    G_k = sum_{j >= k} gamma^(j - k) r_j

    Discounting is by turn, whatever the length of the turns in tokens.
    """
    reward = only(reward, valid)
    after = torch.zeros_like(reward[..., 0])
    returns = torch.zeros_like(reward)
    for k in reversed(range(reward.shape[-1])):
        # From the back, so that each turn's return is that of the next one, discounted, plus its
        # reward.
        after = reward[..., k] + gamma * after
        returns[..., k] = after
    return only(returns, valid)


def turn_advantage(
    return_: Float[Tensor, "P G K"],
    valid: Bool[Tensor, "P G K"],
    *,
    compare: Literal["turn", "group"],
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-6,
) -> Float[Tensor, "P G K"]:
    """Return how much better each turn's return is than those of the other episodes.

        A_ek = (n - 1) / n (G_ek - b_ek) / (std of all G of the group + eps)

    with n episodes in the group, and as the baseline b_ek

        compare="turn"    the mean of G_hk over the other episodes h that have a turn k; without
                          such an episode, as "group"
        compare="group"   the mean of G_hj over all turns j of the other episodes h

    "turn" is MT-GRPO, Zeng et al. 2025, https://arxiv.org/abs/2505.11821; "group" is
    Kevin, Baronio et al. 2025, https://arxiv.org/abs/2507.11948. Both papers include the episode
    itself in the mean. That is harmless if all episodes have equally many turns; if the policy
    decides when to stop, it scales the gradient of a turn by the number of episodes that reached
    it, and lets a late turn pay for an early one. Here the baseline never depends on the episode
    itself, so that without the division by the standard deviation the expected gradient is exactly
    (n - 1) / n times that of the expected return. With one turn per episode both equal GRPO.

    Raises:
        DataError: a group has fewer than two episodes.
    """
    _check_group(return_)
    return_ = only(return_, valid)
    counts = valid.any(dim=-1)
    n = counts.sum(dim=-1)[:, None, None].to(return_.dtype)
    pooled = _of_others(return_.sum(dim=-1), valid.sum(dim=-1), axis=1).unsqueeze(-1)
    baseline = pooled.expand_as(return_)
    if compare == "turn":
        reached = valid.sum(dim=1, keepdim=True) > 1
        baseline = torch.where(reached, _of_others(return_, valid.long(), axis=1), baseline)
    # (n - 1) / n makes the result equal GRPO's, whose baseline includes the episode itself.
    advantage = (n - 1) / n.clamp(min=1) * (return_ - baseline)
    whole = (return_.flatten(1), valid.flatten(1))
    if scale == "std":
        # One standard deviation for the whole group: one per turn would blow up turns few
        # episodes reach.
        advantage = advantage / (masked_var(*whole, dim=1).sqrt()[:, None, None] + eps)
    teaches = (n > 1) & ~all_equal(*whole)[:, None, None]
    return only(advantage, valid & teaches)


def state_advantage(
    return_: Float[Tensor, "P G K"],
    state: Int[Tensor, "P G K"],
    valid: Bool[Tensor, "P G K"],
    *,
    scale: Literal["std", "none"] = "std",
    eps: float = 1e-6,
) -> Float[Tensor, "P G K"]:
    """Return how much better each turn's return is than that of other turns in the same state.

        A^S_ek = (G_ek - mean of G over the group's turns in state s_ek) / (std of the same + eps)

    GiGPO, Feng et al. 2025, https://arxiv.org/abs/2505.10978; the whole advantage is that of
    the episode plus omega A^S. A turn whose state no other turn of the group is in gets zero.

    Args:
        return_: Discounted returns from each turn on.
        state: Equal numbers mean the same state, within a group.
        valid: See the head of this file.
        scale: Whether to divide by the standard deviation of the state's returns.
        eps: Keeps the advantages of states with almost equal returns small.
    """
    axes = return_.shape
    returns, states, counted = only(return_, valid).flatten(1), state.flatten(1), valid.flatten(1)
    # [P, N, N] with N = G * K, small enough because groups have few turns.
    same = (states[:, :, None] == states[:, None, :]) & counted[:, None, :] & counted[:, :, None]
    each = returns[:, None, :].expand(same.shape)
    advantage = returns - masked_mean(each, same, dim=-1)
    if scale == "std":
        advantage = advantage / (masked_var(each, same, dim=-1).sqrt() + eps)
    # A state that occurs once equals itself, so `all_equal` also covers the lone turn.
    return only(advantage, counted & ~all_equal(each, same)).view(axes)


def turn_gae(
    reward: Float[Tensor, "E T"],
    value: Float[Tensor, "E T"],
    turn: Int[Tensor, "E T"],
    mask: Bool[Tensor, "E T"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
) -> Gae:
    """Generalised advantage estimation over the turns of each episode instead of its tokens.

        delta_k = r_k + gamma V_k+1 - V_k
        A_k     = delta_k + gamma lambda A_k+1
        R_k     = A_k + V_k

    MT-PPO in Zeng et al. 2025, https://arxiv.org/abs/2505.11821, and VAGEN's turn level. r_k is the
    sum over the turn's tokens, V_k the value before the first of them; all of them get A_k and R_k.

    Args:
        reward: The reward of each token.
        value: Value before each token was chosen.
        turn: Number of the turn that sampled each token, from 0; anything where not trained.
        mask: True on the trained tokens; the tokens of a turn may have gaps between them.
        gamma: Discount of a turn.
        gae_lambda: Discount of the errors of later turns.
    """
    # Scatter needs a valid index everywhere; the masked entries add 0 to turn 0.
    turn = turn.masked_fill(~mask, 0)
    tokens = turn.shape[1]
    axes = (turn.shape[0], int(turn.max()) + 1 if turn.numel() else 1)
    of_turn = torch.zeros(axes, dtype=reward.dtype, device=reward.device)
    of_turn = of_turn.scatter_add(1, turn, only(reward, mask))
    position = torch.arange(tokens, device=turn.device).expand_as(turn)
    first = torch.full(axes, tokens, device=turn.device)
    first = first.scatter_reduce(1, turn, position.masked_fill(~mask, tokens), "amin")
    # Turns that do not exist point past the end; the clamped value is masked in `gae`.
    before = only(value.detach(), mask).gather(1, first.clamp(max=tokens - 1))
    estimate = gae(of_turn, before, first < tokens, gamma=gamma, gae_lambda=gae_lambda)
    return Gae(*(only(each.gather(1, turn), mask) for each in estimate))


def _of_others(
    total: Float[Tensor, "P G *K"], count: Int[Tensor, "P G *K"], *, axis: int
) -> Float[Tensor, "P G *K"]:
    """Return the group's mean without each episode's own part; 0 if nothing else is left."""
    others = count.sum(dim=axis, keepdim=True) - count
    return (total.sum(dim=axis, keepdim=True) - total) / others.clamp(min=1)


def _check_group(return_: Float[Tensor, "P G K"]) -> None:
    if return_.shape[1] < 2:
        raise DataError(f"a group needs at least 2 episodes to compare, got {return_.shape[1]}")
