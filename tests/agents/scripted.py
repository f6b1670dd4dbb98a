"""Let a policy say what a test wants; log probabilities stay the model's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

from orbiter.train.engine.policy import Policy
from orbiter.train.serve import batching
from orbiter.train.serve.reply import DrawnToken
from orbiter.train.serve.rows import AnswerRow

Script = Callable[[str, int], str]
"""Returns the policy's next answer, given the text of its prompt and the seed of the answer."""


def scripted(monkeypatch: pytest.MonkeyPatch, policy: Policy, script: Script) -> None:
    """Draw the tokens of `script(prompt, seed)` instead of sampling; for byte-level tiny models."""
    end = policy.tokenizer.eos_token_id

    def draw(logits: Tensor, rows: Sequence[AnswerRow]) -> list[DrawnToken]:
        scores = logits.float().log_softmax(dim=-1)
        drawn = []
        for place, row in enumerate(rows):
            prompt = policy.tokenizer.decode(row.reply.prompt_ids)
            answer = [*script(prompt, row.reply.sampling.seed).encode(), end]
            token = answer[len(row.choice.tokens)]
            drawn.append(DrawnToken(token, float(scores[place, token]), []))
        return drawn

    monkeypatch.setattr(batching, "draw", draw)


def tool_call(name: str, **arguments: object) -> str:
    """Return a call as the policy writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
