"""The answers that a decode loop draws, one row of the model each, and the draw of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orbiter.train.engine.sample import JUST_BELOW_ONE, choose
from orbiter.train.seeding import sub_seed
from orbiter.train.serve.reply import DrawnToken, DrawSettings, GrowingAnswer, GrowingReply


@dataclass(slots=True)
class AnswerRow:
    """One answer in the model."""

    reply: GrowingReply
    choice: GrowingAnswer
    noise: list[float]
    """The uniform random number for each token to come."""
    # A row may fail once because of another row; twice at the same token means it is the cause.
    recovered_at: int = -1
    """The number of its tokens when the model last failed; -1 if it never did."""

    @property
    def wanted(self) -> bool:
        """Whether the answer is unfinished and a client still waits for it."""
        return self.choice.finish_reason is None and not self.reply.left

    def run_token_ids(self) -> list[int]:
        """Return the tokens that the model has run for this row: all but the newest one."""
        # The newest token has been drawn but not read yet: the next step reads it.
        return [*self.reply.prompt_ids, *(drawn.token_id for drawn in self.choice.tokens[:-1])]


def rows_of(reply: GrowingReply) -> list[AnswerRow]:
    """Make a row for each answer, with the random numbers that `sample` would use for it."""
    rows = []
    for choice in reply.choices:
        generator = torch.Generator()
        generator.manual_seed(sub_seed(reply.sampling.seed, "sample", 0, choice.index))
        noise = torch.empty(reply.sampling.max_new_tokens).uniform_(generator=generator)
        # The whole row is drawn at once, so token t gets the same number however rows are
        # batched.
        rows.append(AnswerRow(reply, choice, noise.clamp_(max=JUST_BELOW_ONE).tolist()))
    return rows


@torch.inference_mode()
def draw(logits: Float[Tensor, "B V"], rows: Sequence[AnswerRow]) -> list[DrawnToken]:
    """Draw every row's token with the settings of its request."""
    # Rows with equal settings are drawn together: one softmax a setting instead of one a row.
    alike: dict[tuple[float, float], list[int]] = {}
    for index, row in enumerate(rows):
        sampling = row.reply.sampling
        alike.setdefault((sampling.temperature, sampling.top_p), []).append(index)
    drawn: dict[int, DrawnToken] = {}
    for (temperature, top_p), places in alike.items():
        part = logits if len(alike) == 1 else logits[places]
        noise = [rows[index].noise[len(rows[index].choice.tokens)] for index in places]
        uniform = torch.tensor(noise, device=part.device)
        chosen = choose(part, uniform, temperature=temperature, top_p=top_p)
        of_tokens = zip(chosen.token_ids.tolist(), chosen.logprob.tolist(), strict=True)
        for index, (token_id, logprob) in zip(places, of_tokens, strict=True):
            top = _top(logits[index], rows[index].reply.sampling)
            drawn[index] = DrawnToken(token_id, logprob, top)
    return [drawn[index] for index in range(len(rows))]


def _top(logits: Float[Tensor, "V"], sampling: DrawSettings) -> list[tuple[int, float]]:
    """List the likeliest tokens, at the temperature of the drawn token's log probability."""
    if not sampling.top_logprobs:
        return []
    # Temperature 0 reports log probabilities at temperature 1, like `choose`.
    scaled = logits.float() / (sampling.temperature or 1.0)
    likeliest = scaled.log_softmax(dim=-1).topk(min(sampling.top_logprobs, len(scaled)))
    return list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
