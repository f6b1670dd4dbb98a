"""A rollout: one sequence of tokens, with the ones that the policy chose marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orbiter.train.errors import DataError


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sequence of tokens: the prompt, the answer, and any tool results or later turns.

    Its fields are plain numbers and text, so that a checkpoint can store it exactly as JSON.
    """

    token_ids: list[int]
    mask: list[bool]
    """True: the policy chose this token. False: it was given (prompt, tool result, next turn)."""
    old_logprob: list[float]
    """log pi(token) when the token was sampled, in nats; 0 for tokens that were not sampled.

    It is taken from the full softmax at the sampling temperature, even if `top_p` is below 1.
    """
    prompt_length: int
    """Number of prompt tokens at the start; all samples of a group have the same prompt."""
    text: str = ""
    """The sampled tokens as text, without special tokens."""
    raw_text: str = ""
    """The same text with special tokens such as `[TOOL_CALLS]`, but without the token that ended
    it."""
    finish_reason: Literal["stop", "length", "given"] = "given"
    """How the answer ended: the model stopped, it reached the length limit, or it was not
    sampled."""

    def __post_init__(self) -> None:
        lengths = (len(self.token_ids), len(self.mask), len(self.old_logprob))
        # Checked once, here, so that no later file needs to.
        # Everything downstream indexes the three lists by the same position.
        if len(set(lengths)) != 1:
            raise DataError(
                f"token_ids, mask and old_logprob must be aligned, got lengths {lengths}"
            )
        if not 0 < self.prompt_length <= len(self.token_ids):
            raise DataError(
                f"prompt_length must be in [1, {len(self.token_ids)}], got {self.prompt_length}"
            )

    @property
    def completion_ids(self) -> list[int]:
        """All tokens after the prompt."""
        return self.token_ids[self.prompt_length :]


def given(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Rollout:
    """Make a rollout from an existing answer, as SFT imitates it."""
    prompt, answer = len(prompt_ids), len(completion_ids)
    return Rollout(
        token_ids=[*prompt_ids, *completion_ids],
        mask=[False] * prompt + [True] * answer,
        old_logprob=[0.0] * (prompt + answer),
        prompt_length=prompt,
    )
