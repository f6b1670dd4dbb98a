"""Sample answers from a policy.

This file has the decoding loop; the model's forward passes are in `forward/`. To save work, a
prompt runs once per group, samples of a group share one row of the model until they draw different
tokens, and finished samples leave the batch. Each sample has a separate stream of random numbers,
so none of this changes which tokens are drawn. Beam search, penalties and grammars are not
supported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orbiter.train.engine.branches import Branches
from orbiter.train.engine.encoding import texts_of_answers
from orbiter.train.engine.forward.generic import Decoder
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.progress import Report, shifted
from orbiter.train.engine.rollout import Rollout
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.seeding import sub_seed

JUST_BELOW_ONE = 1 - 2**-20
"""Largest uniform number used: times the total mass, float32 must not round it up to the total."""


def sample(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    max_rows: int = 256,
    report: Report | None = None,
) -> list[Rollout]:
    """Sample `n` answers to each prompt; answer g to prompt p is at index p * n + g.

    Token t of a row is the inverse of the softmax's cumulative sum at u(seed, p, g, t). These
    random numbers depend neither on `max_rows` nor on which rows have finished. `top_p` restricts
    the tokens that may be drawn but not `old_logprob`, which uses the full softmax. Temperature 0
    takes the likeliest token and records its log probability at temperature 1.

    If `seed` is a sequence, it holds one seed per prompt, and each prompt is sampled exactly as in
    a call with that prompt alone. `report` is called after each token of all rows.

    Raises:
        DataError: a prompt is empty, or does not leave room for `max_new_tokens`.
    """
    if temperature < 0 or not 0 < top_p <= 1 or n < 1 or max_new_tokens < 1:
        raise ConfigError(
            "sampling needs temperature >= 0, 0 < top_p <= 1, n >= 1 and max_new_tokens >= 1, "
            f"got {temperature=}, {top_p=}, {n=}, {max_new_tokens=}"
        )
    for index, prompt in enumerate(prompts):
        _check_prompt(prompt, index, room=policy.context_length - max_new_tokens)
    # On the CPU first, so that the random numbers are the same on every device.
    noise = _noise(len(prompts), n, max_new_tokens, seed).to(policy.device)
    rollouts: list[Rollout] = []
    # Samples of a prompt stay together, since they share its row of the model.
    at_once = max(1, max_rows // n)
    for first in range(0, len(prompts), at_once):
        part = prompts[first : first + at_once]
        # Inference mode also skips the version counters that autograd would need.
        with torch.inference_mode():
            decoder = policy.forward.decoder(part, max_new_tokens)
            rows = noise[first * n : (first + len(part)) * n]
            pick = functools.partial(choose, temperature=temperature, top_p=top_p)
            part_report = shifted(report, first * n, max_new_tokens)
            drawn = _draw(decoder, rows, n, policy.stop_token_ids, pick, report=part_report)
        rollouts += _as_rollouts(policy, part, n, drawn)
    return rollouts


class DrawnTokens(NamedTuple):
    """The tokens drawn by the loop, still as padded tensors."""

    token_ids: Int[Tensor, "B T"]
    logprob: Float[Tensor, "B T"]
    length: Int[Tensor, "B"]
    stopped: Bool[Tensor, "B"]


def _draw(
    decoder: Decoder,
    noise: Float[Tensor, "B T"],
    n: int,
    stop_token_ids: frozenset[int],
    choose: Callable[[Tensor, Tensor], ChosenTokens],
    *,
    report: Report,
) -> DrawnTokens:
    """Sample every row until it stops or reaches the length limit."""
    # Sorted, because the order of a set may differ between processes.
    stop = torch.tensor(sorted(stop_token_ids), device=noise.device)
    token_ids = torch.zeros(noise.shape, dtype=torch.long, device=noise.device)
    logprob = torch.zeros_like(noise)
    length = torch.full(noise.shape[:1], noise.shape[1], device=noise.device)
    stopped = torch.zeros_like(length, dtype=torch.bool)
    alive = torch.arange(len(noise), device=noise.device)
    # At first all n samples of a prompt share the prompt's row.
    tree = Branches(alive // n, alive % n, n)
    logits = decoder.start()
    for t in range(noise.shape[1]):
        # One softmax per row serves all of its samples, each with a separate random number.
        chosen = choose(logits, tree.lay_out(noise[alive, t], rows=len(logits)))
        following, likelihood = (each[tree.branch, tree.place] for each in chosen)
        token_ids[alive, t], logprob[alive, t] = following, likelihood
        # The stop token itself is part of the sample: the policy chose it, so it is trained on.
        ends = torch.isin(following, stop)
        length[alive[ends]] = t + 1
        # An answer that fills its length without a stop token counts as cut off.
        stopped[alive[ends]] = True
        if bool(ends.any()):
            alive, following, tree = alive[~ends], following[~ends], tree.only(~ends)
        unfinished = len(alive) if t + 1 < noise.shape[1] else 0
        missing = unfinished * (noise.shape[1] - t - 1)
        report(noise.numel() - missing, len(noise) - unfinished)
        # The last token needs no forward pass after it.
        if len(alive) == 0 or t + 1 == noise.shape[1]:
            break
        tree, kept, read = tree.grow(following, rows=len(logits))
        if kept is not None:
            decoder.keep(kept)
        logits = decoder.step(read)
    return DrawnTokens(token_ids, logprob, length, stopped)


class ChosenTokens(NamedTuple):
    """Tokens with their log probabilities."""

    token_ids: Int[Tensor, "B *n"]
    logprob: Float[Tensor, "B *n"]


def choose(
    logits: Float[Tensor, "B V"],
    uniform: Float[Tensor, "B *n"],
    *,
    temperature: float,
    top_p: float = 1.0,
) -> ChosenTokens:
    """Pick the token whose interval of the cumulative softmax contains the uniform number.

    One exponential and one cumulative sum serve both the draws and the log probability, which takes
    an eighth of the time of softmax, multinomial and log_softmax over 49,152 tokens
    (docs/engine.md).
    """
    # Temperature 0 records the log probability at temperature 1, so nothing is divided.
    scaled = logits.float() if temperature in (0, 1) else logits.float() / temperature
    largest, likeliest = scaled.max(dim=-1, keepdim=True)
    # Shifted by the largest logit, so that exp cannot overflow; the mass is not normalised yet.
    mass = (scaled - largest).exp_()
    cumulative = (mass if top_p == 1 else _nucleus(mass, top_p)).cumsum(dim=-1)
    # The log probability refers to the full softmax, so its total includes the tokens outside
    # top_p.
    total = cumulative[:, -1:] if top_p == 1 else mass.sum(dim=-1, keepdim=True)
    wanted = uniform.view(len(logits), -1)
    # Inverse transform sampling: the first token whose cumulative mass exceeds u times the total.
    if temperature > 0:
        # right=True skips tokens with mass 0, which share their cumulative sum with the one
        # before.
        token = torch.searchsorted(cumulative, wanted * cumulative[:, -1:], right=True)
    else:
        token = likeliest.expand(wanted.shape)
    logprob = scaled.gather(1, token) - largest - total.log()
    return ChosenTokens(token.reshape(uniform.shape), logprob.reshape(uniform.shape))


def _nucleus(mass: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Set the mass of all tokens to zero except the likeliest ones that sum to `top_p`."""
    ordered, index = mass.sort(dim=-1, descending=True)
    # Mass before a token, so that the token which crosses top_p is still kept.
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * mass.sum(dim=-1, keepdim=True), 0.0)
    return torch.zeros_like(mass).scatter_(1, index, ordered)


def _noise(prompts: int, n: int, tokens: int, seed: int | Sequence[int]) -> Float[Tensor, "B T"]:
    """Draw the uniform numbers of every row, each row with a separate seed."""
    keys = [(seed, p) for p in range(prompts)] if isinstance(seed, int) else [(s, 0) for s in seed]
    noise = torch.empty(prompts * n, tokens)
    generator = torch.Generator()
    for row in range(prompts * n):
        own, place = keys[row // n]
        # A separate seed for each row: the number of rows in a call cannot shift the numbers of
        # others.
        generator.manual_seed(sub_seed(own, "sample", place, row % n))
        noise[row].uniform_(generator=generator)
    return noise.clamp_(max=JUST_BELOW_ONE)


def _check_prompt(prompt: Sequence[int], index: int, *, room: int) -> None:
    """Raise if a prompt is empty or leaves no room for the answer."""
    if not 0 < len(prompt) <= room:
        raise DataError(
            f"prompt {index} has {len(prompt)} tokens; with the answer, the model's context leaves "
            f"room for 1 to {room}: shorten the prompt, or lower max_response_length"
        )


def _as_rollouts(
    policy: Policy, prompts: Sequence[Sequence[int]], n: int, drawn: DrawnTokens
) -> list[Rollout]:
    """Convert the padded tensors into one rollout per row."""
    rollouts = []
    lengths, stopped = drawn.length.tolist(), drawn.stopped.tolist()
    token_ids, logprobs = drawn.token_ids.tolist(), drawn.logprob.tolist()
    answers = [of_row[:length] for of_row, length in zip(token_ids, lengths, strict=True)]
    texts = texts_of_answers(policy.tokenizer, answers, stops=policy.stop_token_ids)
    for row, length in enumerate(lengths):
        prompt, answer = list(prompts[row // n]), answers[row]
        rollouts.append(
            Rollout(
                token_ids=prompt + answer,
                mask=[False] * len(prompt) + [True] * length,
                old_logprob=[0.0] * len(prompt) + logprobs[row][:length],
                prompt_length=len(prompt),
                text=texts[row].text,
                raw_text=texts[row].raw,
                finish_reason="stop" if stopped[row] else "length",
            )
        )
    return rollouts
