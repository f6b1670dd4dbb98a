"""The `Forward` and `Decoder` protocols, and the generic forward pass for any causal LM.

The generic forward pass calls the model's own: right-padded rows in training, Hugging Face's cache
in sampling. It still avoids some work: in sampling, prompts run once per group and finished rows
leave the batch; only the states before trained tokens reach the vocabulary head. `fast.py` has the
one written for the Llama and Qwen families.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.forward.head import TokenScores, scores_of_logits, token_scores

HEAD_TOLERANCE = 1e-4
"""Difference between a model's logits and hidden state x head that counts as rounding error."""


class BatchScores(NamedTuple):
    """Scores and states of the N trained tokens of a batch, in the mask's row order."""

    tokens: TokenScores
    hidden: Float[Tensor, "N H"]
    """Hidden state before each token, after the final norm."""


class Decoder(Protocol):
    """A model during sampling, which starts with one row per prompt."""

    def start(self) -> Float[Tensor, "P V"]:
        """Run the prompts and return the logits of the first token after each."""

    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append one token to every row and return the logits of the next token."""

    def keep(self, rows: Int[Tensor, "R"]) -> None:
        """Continue with these rows only; rows of a prompt are adjacent, and may be repeated."""


class Forward(Protocol):
    """One way to run the model."""

    name: str

    def score(self, batch: Batch, *, temperature: float) -> BatchScores:
        """Score the trained tokens, with gradients unless the caller has disabled them."""

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """Return only the hidden states, without running the vocabulary head."""

    def cost(self, batch: Batch) -> Int[Tensor, "B"]:
        """Return how many tokens each row puts through the model."""

    def decoder(self, prompts: Sequence[Sequence[int]], room: int) -> Decoder:
        """Prepare to sample answers of up to `room` tokens."""


class GenericForward:
    """A forward pass for any Hugging Face causal LM, through the model's own forward method."""

    name = "generic"

    def __init__(self, model: PreTrainedModel, *, dtype: torch.dtype) -> None:
        """Run `model` in `dtype`; its weights are not changed."""
        self.model: Any = model
        self.dtype = dtype
        self.body: Any = self.model.base_model
        self.head: Any = self.model.get_output_embeddings()
        self.plain_head = has_plain_head(model)

    def score(self, batch: Batch, *, temperature: float) -> BatchScores:
        """Score the padded rows; only the states before trained tokens reach a plain head."""
        rows, columns = batch.mask.nonzero(as_tuple=True)
        token_ids = batch.token_ids[rows, columns]
        with self._autocast():
            if self.plain_head:
                hidden = self._states(batch)[rows, columns - 1]
                narrow = hidden.to(self.dtype)
                tokens = token_scores(narrow, self.head.weight, token_ids, temperature=temperature)
            else:
                out = self.model(batch.token_ids, use_cache=False, output_hidden_states=True)
                hidden = out.hidden_states[-1][rows, columns - 1]
                logits = out.logits[rows, columns - 1]
                tokens = scores_of_logits(logits, token_ids, temperature=temperature)
        return BatchScores(tokens, hidden.float())

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """Run the model without its vocabulary head."""
        rows, columns = batch.mask.nonzero(as_tuple=True)
        with self._autocast():
            return self._states(batch)[rows, columns - 1].float()

    def cost(self, batch: Batch) -> Int[Tensor, "B"]:
        """Count the full length of every row."""
        return batch.length

    def decoder(self, prompts: Sequence[Sequence[int]], room: int) -> Decoder:
        """Sample through Hugging Face's cache, which grows as needed and ignores `room`."""
        del room
        return GenericDecoder(self.model, self.dtype, prompts)

    def _states(self, batch: Batch) -> Float[Tensor, "B T H"]:
        """Return the hidden states.

        Padding is on the right, where a causal model cannot see it, so no mask is needed.
        """
        states: Tensor = self.body(batch.token_ids, use_cache=False).last_hidden_state
        return states

    def _autocast(self) -> torch.autocast:
        """Run matrix products in bfloat16 over float32 weights, if the policy's dtype is that."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


class GenericDecoder:
    """Sampling through the model's own forward method and Hugging Face's cache."""

    def __init__(
        self, model: PreTrainedModel, dtype: torch.dtype, prompts: Sequence[Sequence[int]]
    ) -> None:
        """Pad the prompts on the left; cast the weights to `dtype` once instead of every step."""
        self.model = model
        device = model.device
        longest = max(map(len, prompts))
        self.prompts = torch.tensor([[0] * (longest - len(p)) + [*p] for p in prompts]).to(device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.seen = torch.arange(longest, device=device) >= longest - lengths[:, None]
        self.cache = DynamicCache(config=model.config)
        self.weights = {
            name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()
        }

    def start(self) -> Float[Tensor, "P V"]:
        """Run each prompt once."""
        position = (self.seen.cumsum(dim=-1) - 1).clamp_(min=0)
        return self._run(self.prompts, position)

    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append one token to each row."""
        position = self.seen.sum(dim=-1, keepdim=True)
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(self.seen), 1)], dim=-1)
        return self._run(token_ids[:, None], position)

    def keep(self, rows: Int[Tensor, "R"]) -> None:
        """Reduce the cache to these rows; a repeated row is copied."""
        self.cache.batch_select_indices(rows)
        self.seen = self.seen[rows]

    def _run(self, token_ids: Int[Tensor, "B T"], position: Int[Tensor, "B T"]) -> Tensor:
        """Return the logits after the last token of each row."""
        inputs = {
            "input_ids": token_ids,
            "attention_mask": self.seen.long(),
            "position_ids": position,
            "past_key_values": self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        out = torch.func.functional_call(self.model, self.weights, (), inputs)
        logits: Tensor = out.logits[:, -1]
        return logits


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Return whether the logits are hidden state x output embedding, without bias, cap or scale."""
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or len(list(head.parameters())) != 1:
        return False
    probe = torch.arange(4, device=head.weight.device)[None] % model.config.vocab_size
    run: Any = model
    states = run.base_model(probe, use_cache=False).last_hidden_state
    made = run(probe, use_cache=False).logits
    return bool(torch.allclose(states @ head.weight.t(), made, atol=HEAD_TOLERANCE))


def place(values: Float[Tensor, "N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Put one value per trained token at the positions where the mask is True; 0 elsewhere."""
    spread = values.new_zeros(mask.shape)
    spread[mask] = values
    return spread
