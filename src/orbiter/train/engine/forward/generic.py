"""The `Forward` and `Decoder` protocols, and the generic forward pass for any causal LM.

The generic forward pass calls the model's own: right-padded rows in training, Hugging Face's cache
in sampling. It still avoids some work: in sampling, prompts run once per group and finished rows
leave the batch; only the states before trained tokens reach the vocabulary head. `fast.py` has the
one written for the Llama and Qwen families.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.forward.head import TokenScores, scores_of_logits, token_scores
from orbiter.train.engine.forward.teacher_head import HeadInput
from orbiter.train.engine.rollout import given

PROBE_TOLERANCE = 1e-2
"""Difference between log probabilities in a batch and alone that counts as rounding error."""
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


class HeldPrompt(Protocol):
    """A prompt that has run once, for several batches of answers to it."""

    forward: Forward
    """Runs batches whose rows all have this prompt; it runs only their answers."""

    def backward(self) -> None:
        """Pass the gradients that the batches left at the prompt on to the weights."""


class Forward(Protocol):
    """One way to run the model."""

    name: str

    def score(self, batch: Batch, *, temperature: float) -> BatchScores:
        """Score the trained tokens, with gradients unless the caller has disabled them."""

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """Return only the hidden states, without running the vocabulary head."""

    def head_input(self, batch: Batch) -> HeadInput:
        """Return what the vocabulary head makes the logits of the trained tokens from."""

    def cost(self, batch: Batch) -> Int[Tensor, "B"]:
        """Return how many tokens each row puts through the model."""

    def hold(self, prompt: Int[Tensor, "P"]) -> HeldPrompt | None:
        """Run a prompt ahead of its answers; None if this forward pass cannot."""

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
                # The state before a token predicts it: the shift by one that a causal model
                # needs.
                hidden = self._states(batch)[rows, columns - 1]
                # Autocast leaves norms in float32, and the head's product must run in the
                # policy's dtype.
                narrow = hidden.to(self.dtype)
                tokens = token_scores(narrow, self.head.weight, token_ids, temperature=temperature)
            else:
                out = self.model(batch.token_ids, use_cache=False, output_hidden_states=True)
                hidden = out.hidden_states[-1][rows, columns - 1]
                logits = out.logits[rows, columns - 1]
                tokens = scores_of_logits(logits, token_ids, temperature=temperature)
        # A value head or reward model reads these, and its weights are float32.
        return BatchScores(tokens, hidden.float())

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """Run the model without its vocabulary head."""
        rows, columns = batch.mask.nonzero(as_tuple=True)
        with self._autocast():
            return self._states(batch)[rows, columns - 1].float()

    def head_input(self, batch: Batch) -> HeadInput:
        """Return the states before the trained tokens, or the model's own logits there."""
        rows, columns = batch.mask.nonzero(as_tuple=True)
        with self._autocast():
            if self.plain_head:
                hidden = self._states(batch)[rows, columns - 1]
                return HeadInput(hidden.to(self.dtype), self.head.weight)
            logits = self.model(batch.token_ids, use_cache=False).logits
            return HeadInput(logits[rows, columns - 1], None)

    def cost(self, batch: Batch) -> Int[Tensor, "B"]:
        """Count the full length of every row."""
        return batch.length

    def hold(self, prompt: Int[Tensor, "P"]) -> None:
        """Run every row whole, with its prompt."""

    def decoder(self, prompts: Sequence[Sequence[int]], room: int) -> Decoder:
        """Sample through Hugging Face's cache, which grows as needed and ignores `room`."""
        del room
        return GenericDecoder(self.model, self.dtype, prompts)

    def _states(self, batch: Batch) -> Float[Tensor, "B T H"]:
        """Return the hidden states.

        Padding is on the right, where a causal model cannot see it, so no mask is needed.
        """
        # The causal mask is the model's own; padding ids are 0 and their states are never read.
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
        # On the left, so that the last column holds the newest token of every row.
        self.prompts = torch.tensor([[0] * (longest - len(p)) + [*p] for p in prompts]).to(device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.seen = torch.arange(longest, device=device) >= longest - lengths[:, None]
        self.cache = DynamicCache(config=model.config)
        # Models with positions by distance take no position_ids, and old ones no logits_to_keep.
        self.takes = frozenset(inspect.signature(model.forward).parameters)
        self.weights = {
            name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()
        }

    def start(self) -> Float[Tensor, "P V"]:
        """Run each prompt once."""
        # Positions count real tokens only; the padding on the left must not shift them.
        position = (self.seen.cumsum(dim=-1) - 1).clamp_(min=0)
        return self._run(self.prompts, position)

    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append one token to each row."""
        # The position is the number of real tokens so far, which differs from the column index.
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
        inputs = {name: value for name, value in inputs.items() if name in self.takes}
        # functional_call runs the model with the cast weights without touching its parameters.
        out = torch.func.functional_call(self.model, self.weights, (), inputs)
        logits: Tensor = out.logits[:, -1]
        return logits


@torch.no_grad()
def why_generic_fails(model: PreTrainedModel) -> str | None:
    """Return why a model does not work through its own forward method; None if it does.

    A batch of prompts of two lengths is scored and sampled from, and compared with the model's
    logits on each sequence alone.
    """
    size = model.get_input_embeddings().weight.shape[0]
    prompts, answers = ((1, 5, 9), (4,)), ((2, 7), (6, 3))
    rows = [
        given([token % size for token in prompt], [token % size for token in answer])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    run: Any = model
    try:
        forward = GenericForward(model, dtype=torch.float32)
        batch = collate(rows, device=model.device)
        scored = forward.score(batch, temperature=1.0).tokens.logprob
        decoder = forward.decoder([row.token_ids[: row.prompt_length] for row in rows], 2)
        # The two drawn steps read what `batch` holds, so all three ways score the same tokens.
        drawn = [decoder.start(), decoder.step(batch.token_ids[[0, 1], [3, 1]])]
        alone = [run(torch.tensor([row.token_ids]).to(model.device)).logits[0] for row in rows]
    except Exception as error:  # a model's own code may fail in any way
        return f"its forward method fails ({type(error).__name__}: {error!s:.200})"
    # The logits at -3 and -2 predict the last two tokens, which are the answer.
    wanted = torch.stack([each[-3:-1].log_softmax(-1) for each in alone])  # row, step, vocabulary
    have = torch.stack(drawn, dim=1).log_softmax(-1)
    chosen = torch.stack([row[-2:] for row in (batch.token_ids[0, 3:5], batch.token_ids[1, 1:3])])
    of_tokens = wanted.gather(-1, chosen[..., None])[..., 0]
    distance = max(
        float((have - wanted).abs().max()),
        float((scored.view(2, 2) - of_tokens).abs().max()),
    )
    # Written as `not (x <= y)`, which is also true for NaN.
    if not distance <= PROBE_TOLERANCE:
        return (
            f"its log probabilities in a batch differ by {distance:.1e} from those of a row alone"
        )
    return None


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Return whether the logits are hidden state x output embedding, without bias, cap or scale."""
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or len(list(head.parameters())) != 1:
        return False
    # Probe rather than read the config: scale and soft cap have different names in every family.
    probe = torch.arange(4, device=head.weight.device)[None] % model.config.vocab_size
    run: Any = model
    states = run.base_model(probe, use_cache=False).last_hidden_state
    made = run(probe, use_cache=False).logits
    return bool(torch.allclose(states @ head.weight.t(), made, atol=HEAD_TOLERANCE))


def place(values: Float[Tensor, "N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Put one value per trained token at the positions where the mask is True; 0 elsewhere."""
    spread = values.new_zeros(mask.shape)
    # Boolean indexing runs in row order, the same order in which `nonzero` listed the tokens.
    spread[mask] = values
    return spread
