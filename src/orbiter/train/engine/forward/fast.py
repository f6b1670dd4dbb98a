"""The fast forward pass, for the Llama, Qwen2 and Qwen3 families.

It uses the Hugging Face module's own parameters, so the optimiser, checkpoints and saving need not
know about it. It is fast for four reasons: tokens are packed; a prompt runs once per group, in
updates as in sampling; only the states before trained tokens pass the last layer and the vocabulary
head; and sampling uses weights that were merged, cast and packed once. `docs/engine.md` measures
the effect of each. All other architectures use the generic path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from orbiter.train.engine.arithmetic import packed_linear
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.forward.attention import (
    AnswerAttention,
    Cache,
    PackedAttention,
    PromptAttention,
)
from orbiter.train.engine.forward.generic import BatchScores, Decoder, Forward, GenericForward
from orbiter.train.engine.forward.head import TokenScores, token_scores
from orbiter.train.engine.forward.layers import (
    Rotary,
    Shape,
    live_layers,
    merged,
    packed_layers,
    rotary_table,
    trunk,
)
from orbiter.train.engine.forward.packing import Packing, Rectangle
from orbiter.train.engine.forward.pointwise import rms_norm
from orbiter.train.engine.forward.teacher_head import HeadInput
from orbiter.train.engine.rollout import given

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Model classes whose forward pass this file reproduces."""
ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose table does not depend on the input."""
AGREEMENT = 1e-4
"""Largest accepted log-probability difference from Hugging Face's forward pass, in nats."""


class FastForward:
    """A faster forward pass over a Hugging Face model's parameters."""

    name = "fast"

    def __init__(
        self, model: PreTrainedModel, *, dtype: torch.dtype, rotary: Rotary | None = None
    ) -> None:
        """Run `model` in `dtype`; its weights are not changed.

        A rotary table that the caller has is not computed again.
        """
        self.model: Any = model
        self.dtype = dtype
        self.body: Any = self.model.model
        self.shape = Shape.of(model.config)
        self.rotary = rotary or rotary_table(self.body, model.config.max_position_embeddings)

    def score(self, batch: Batch, *, temperature: float) -> BatchScores:
        """Score the packed batch; only the states before trained tokens reach the head."""
        packing = Packing.of(batch)
        states = self._states(packing)
        scores = token_scores(
            states.to(self.dtype),
            self.model.lm_head.weight,
            packing.target,
            temperature=temperature,
        )
        spread = (each.index_select(0, packing.trained) for each in scores)
        # Equal pairs of state and token were scored once; spread them over all rows that contain
        # them.
        return BatchScores(TokenScores(*spread), states.index_select(0, packing.trained))

    def hidden(self, batch: Batch) -> Float[Tensor, "N H"]:
        """Run the body over the packed batch."""
        packing = Packing.of(batch)
        return self._states(packing).index_select(0, packing.trained)

    def head_input(self, batch: Batch) -> HeadInput:
        """Return the states before the trained tokens, and the head."""
        return HeadInput(self.hidden(batch).to(self.dtype), self.model.lm_head.weight)

    def _states(self, packing: Packing) -> Float[Tensor, "M H"]:
        """Return the states before scored tokens, after the final norm."""
        # A state may be scored for several tokens; the layers compute it once.
        wanted, asked = packing.asked.unique(return_inverse=True)
        x = trunk(
            live_layers(self.body, self.dtype),
            self.embed(packing.token_ids),
            self.shape,
            rotary=self.rotary.at(packing.position),
            attend=PackedAttention(packing, self.dtype, wanted=wanted),
            dtype=self.dtype,
            wanted=wanted,
        )
        return self.norm(x.index_select(0, asked))

    def norm(self, x: Float[Tensor, "M H"]) -> Float[Tensor, "M H"]:
        """Apply the norm before the head."""
        return rms_norm(x, self.body.norm.weight, self.shape.eps, torch.float32)

    def cost(self, batch: Batch) -> Int[Tensor, "B"]:
        """Count each row's answer, and each prompt once, with the first row of its group."""
        answer = batch.length - batch.prompt_length
        # Stable, so that the first row of each group is the same on every device.
        order = torch.argsort(batch.group, stable=True)
        group = batch.group[order]
        first = torch.ones_like(group, dtype=torch.bool)
        first[1:] = group[1:] != group[:-1]
        # The group's first row pays for the prompt, since the pass runs it once.
        answer[order[first]] += batch.prompt_length[order[first]]
        return answer

    def hold(self, prompt: Int[Tensor, "P"]) -> FastHeldPrompt:
        """Run a prompt ahead of its answers."""
        return FastHeldPrompt(self, prompt)

    def decoder(self, prompts: Sequence[Sequence[int]], room: int) -> Decoder:
        """Pack the current weights and prepare to sample."""
        return FastDecoder(self, prompts, room=room)

    def embed(self, token_ids: Int[Tensor, "N"]) -> Float[Tensor, "N H"]:
        """Look up the embeddings."""
        embedding = self.body.embed_tokens
        return functional.embedding(token_ids, embedding.weight, embedding.padding_idx)


class FastHeldPrompt:
    """A prompt that ran once; the answers to it run in several batches.

    Batches that are learned from one after the other need the memory of the prompt and of one batch
    of answers. Their gradients gather at the prompt's keys and values until `backward`.
    """

    def __init__(self, forward: FastForward, prompt: Int[Tensor, "P"]) -> None:
        """Run the prompt, with gradients unless the caller has disabled them."""
        attend = PromptAttention(len(prompt), forward.dtype, prompt.device)
        last = trunk(
            live_layers(forward.body, forward.dtype),
            forward.embed(prompt),
            forward.shape,
            rotary=forward.rotary.at(torch.arange(len(prompt), device=prompt.device)),
            attend=attend,
            dtype=forward.dtype,
            wanted=torch.tensor([len(prompt) - 1], device=prompt.device),
        )
        self._run = [*attend.k, *attend.v, last]
        # Cut from the prompt's own graph, so that each batch's backward pass ends here.
        self._seen = [x.detach().requires_grad_(x.requires_grad) for x in self._run]
        layers = len(attend.k)
        k, v = self._seen[:layers], self._seen[layers:-1]
        self.forward: Forward = _AnswersOnly(forward, k, v, last=self._seen[-1])

    def backward(self) -> None:
        """Pass the gradients that the batches left at the prompt on to the weights."""
        pairs = [
            (run, seen.grad)
            for run, seen in zip(self._run, self._seen, strict=True)
            if seen.grad is not None  # no batch asked for the token after the prompt, say
        ]
        if pairs:
            run, grads = zip(*pairs, strict=True)
            torch.autograd.backward(run, grads)


class _AnswersOnly(FastForward):
    """Runs the answers of rows whose prompt has run before."""

    def __init__(
        self, whole: FastForward, k: Sequence[Tensor], v: Sequence[Tensor], *, last: Tensor
    ) -> None:
        super().__init__(whole.model, dtype=whole.dtype, rotary=whole.rotary)
        self._k, self._v = k, v
        self._last: Float[Tensor, "1 H"] = last
        """State of the prompt's last token, before the norm."""

    def _states(self, packing: Packing) -> Float[Tensor, "M H"]:
        first = len(packing.prompts.cell)
        wanted, asked = packing.asked.unique(return_inverse=True)
        own = wanted[wanted >= first] - first
        # Of the prompt only the last token is ever asked, and it comes before all answer tokens.
        states = [self._last] if len(own) < len(wanted) else []
        if len(own):
            x = trunk(
                live_layers(self.body, self.dtype),
                self.embed(packing.token_ids[first:]),
                self.shape,
                rotary=self.rotary.at(packing.position[first:]),
                attend=AnswerAttention(packing, self.dtype, wanted=own, k=self._k, v=self._v),
                dtype=self.dtype,
                wanted=own,
            )
            states.append(x)
        return self.norm(torch.cat(states).index_select(0, asked))


class FastDecoder:
    """Sampling with packed weights and a cache that stores each prompt once."""

    def __init__(
        self, forward: FastForward, prompts: Sequence[Sequence[int]], *, room: int
    ) -> None:
        """Copy the weights into the layout for sampling."""
        body, self.forward = forward.body, forward
        device = body.embed_tokens.weight.device
        self.layers = packed_layers(body, forward.dtype)
        self.head = packed_linear(*merged([forward.model.lm_head]), forward.dtype)
        self.length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.prompt_ids = torch.tensor([i for prompt in prompts for i in prompt], device=device)
        self.cache = Cache(
            Rectangle.of(self.length),
            room=room,
            layers=len(self.layers),
            shape=forward.shape,
            dtype=forward.dtype,
        )

    def start(self) -> Float[Tensor, "P V"]:
        """Run each prompt once."""
        along = torch.arange(int(self.length.max()), device=self.length.device)
        # Rotary positions restart with each packed prompt.
        position = along.expand_as(self.cache.prompts.real)[self.cache.prompts.real]
        x = self._run(self.prompt_ids, position, self.cache.prefill)
        # The logits after a prompt are those of its last packed token.
        return self._logits(x[self.length.cumsum(0) - 1])

    def step(self, token_ids: Int[Tensor, "B"]) -> Float[Tensor, "B V"]:
        """Append one token to each row."""
        x = self._run(token_ids, self.length + self.cache.used, self.cache.step)
        self.cache.used += 1
        return self._logits(x)

    def keep(self, rows: Int[Tensor, "R"]) -> None:
        """Continue with these rows, those of a prompt adjacent."""
        self.length = self.length[rows]
        self.cache.keep(rows)

    def _run(self, token_ids: Tensor, position: Tensor, attend: Any) -> Tensor:  # noqa: ANN401
        """Run the packed layers over new tokens."""
        forward = self.forward
        return trunk(
            self.layers,
            functional.embedding(token_ids, forward.body.embed_tokens.weight),
            forward.shape,
            rotary=forward.rotary.at(position),
            attend=attend,
            dtype=forward.dtype,
        )

    def _logits(self, x: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        """Return the logits of the whole vocabulary."""
        forward = self.forward
        norm = forward.body.norm.weight
        return self.head(rms_norm(x, norm, forward.shape.eps, forward.dtype))


def misfit(model: PreTrainedModel) -> str | None:
    """Return why the model cannot use the fast path, or None if it can.

    The architecture is checked first; then both forward passes score a probe in float32.
    """
    if type(model).__name__ not in FAMILIES:
        return f"{type(model).__name__} is not one of {', '.join(FAMILIES)}"
    config: Any = model.config
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}, not silu"
    rotation = (config.rope_parameters or {}).get("rope_type", "default")
    if rotation not in ROTATIONS:
        return f"its rotary embedding is of the kind {rotation!r}"
    # A window would need another mask per layer, so such models take the generic path.
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "it has layers with a sliding window"
    distance = _probe(model)
    # Families differ in details that no config field shows (biases, norms), so the probe decides.
    if distance > AGREEMENT:
        return f"its log probabilities differ by {distance:.1e} on a probe"
    return None


@torch.no_grad()
def _probe(model: PreTrainedModel) -> float:
    """Return the largest difference between the two forward passes on a few tokens."""
    size = model.config.vocab_size
    # Two rows with a common prompt and a third without, so that packing is probed too.
    rows = [given([i % size for i in (1, 5, 9)], [i % size for i in (2, 7, 3 + n)]) for n in (0, 1)]
    # Token ids modulo the vocabulary, so that the probe fits the smallest model.
    batch = collate([*rows, given([4 % size], [6 % size])], device=model.device)
    passes = [f(model, dtype=torch.float32) for f in (FastForward, GenericForward)]
    fast, generic = (f.score(batch, temperature=1.0).tokens.logprob for f in passes)
    return float((fast - generic).abs().max())
