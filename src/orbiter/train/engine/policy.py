"""The policy: a Hugging Face causal LM with its tokenizer and everything that training adds.

It records which weights are trained (all, or LoRA adapters), a value head, a frozen reference, the
dtype, and the forward pass to use. The weights are the model's own float32 tensors, so saving,
loading and other tools work on them unchanged.

The value function is one linear layer on the final hidden state of the shared trunk, not a
separate critic. This avoids a second copy of weights, gradients and optimiser state, and one pass
gives both log probabilities and values. The disadvantage is that the value loss also trains the
trunk; `vf_coef` weights it. Loading and saving models is in `models/`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from orbiter.train.engine.allocator import keep_freed_memory
from orbiter.train.engine.arithmetic import DTYPES, Arithmetic, choose_dtype, pick_device, processor
from orbiter.train.engine.forward.fast import FastForward, misfit
from orbiter.train.engine.forward.generic import Forward, GenericForward, why_generic_fails
from orbiter.train.engine.models.architectures import context_of, refuse, require_supported
from orbiter.train.engine.models.lora import add_lora, is_adapted, named_trainable
from orbiter.train.engine.turn_end import configured_stops, stop_token_ids
from orbiter.train.errors import DataError, StateError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Policy:
    """A language model in training; use `make_policy` to create one."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    forward: Forward
    """Forward pass of the model."""
    reference_forward: Forward | None
    """Forward pass of the frozen copy; None with LoRA, whose adapters are switched off instead."""
    value_head: nn.Linear | None
    """Maps hidden state to value; starts at zero, so the first advantages equal the returns. In a
    reward model it maps the state after the last token to the score."""
    dtype: str
    """Dtype of the matrix products: float32 or bfloat16, never "auto"."""
    device: torch.device
    stop_token_ids: frozenset[int]
    """Tokens that end an answer: of the model's configuration, the tokenizer, the chat template."""
    teacher: Policy | None = None
    """A frozen model with the same tokenizer, for distillation."""
    dtype_reason: str = ""
    """Why the policy computes in `dtype`, as text for the log."""

    @property
    def path(self) -> str:
        """Name of the forward pass: "fast" or "generic"."""
        return self.forward.name

    @property
    def context_length(self) -> int:
        """Largest number of tokens of prompt and answer together."""
        return context_of(self.model.config)

    @property
    def computes(self) -> str:
        """The dtype, the processor or accelerator, and the reason for the dtype, in one line."""
        return Arithmetic(self.dtype, self.dtype_reason).on(self.device)

    def environment(self) -> dict[str, object]:
        """Describe device, processor, dtype and its reason, for logs and run folders."""
        on = processor()
        return {
            "device": str(self.device),
            "processor": on.name,
            "instruction_set": on.instruction_set,
            "threads": on.threads,
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
        }

    @property
    def adapted(self) -> bool:
        """Whether LoRA adapters are trained instead of the weights."""
        return is_adapted(self.model)

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, in a stable order, the value head last."""
        return named_trainable(self.model, self.value_head)

    @torch.no_grad()
    def load_trainable(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy saved weights into the model; their names and shapes must match exactly."""
        mine = self.named_trainable()
        # Both directions: a missing tensor would keep its initial weights without a word.
        if set(mine) != set(tensors):
            odd = sorted(set(mine) ^ set(tensors))
            raise DataError(
                f"the saved weights do not fit this policy: tensors on one side only: {odd[:4]}"
            )
        for name, parameter in mine.items():
            if parameter.shape != tensors[name].shape:
                got, want = tuple(tensors[name].shape), tuple(parameter.shape)
                raise DataError(f"{name} has shape {got} in the saved weights, {want} in the model")
            parameter.copy_(tensors[name])

    @contextmanager
    def reference(self) -> Iterator[Forward]:
        """Yield the forward pass of the frozen reference.

        With LoRA this is the same model with its adapters switched off, not a second copy.
        """
        if self.reference_forward is not None:
            yield self.reference_forward
        elif self.adapted:
            with self.model.disable_adapter():
                yield self.forward
        else:
            raise StateError("this policy has no reference: make it with reference=True, or LoRA")


def make_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    value_head: bool | nn.Linear = False,
    reference: bool = False,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    path: Literal["auto", "generic"] = "auto",
) -> Policy:
    """Make a policy from a model: adapters, value head, reference, and forward pass.

    `dtype` "auto" chooses the faster of float32 and bfloat16 on this device (`arithmetic.py`).
    `lora_rank` 0 trains all weights. `value_head` may be a head that exists. `reference` keeps a
    frozen copy, which LoRA does not need.
    `path="generic"` always uses Hugging Face's forward pass; "auto" uses the fast one if the model
    belongs to a supported family and both forward passes agree on a probe.

    Raises:
        ConfigError: the engine cannot train a model of this architecture.
    """
    require_supported(model)
    keep_freed_memory()
    target = pick_device(device)
    arithmetic = choose_dtype(dtype, target)
    torch_dtype = DTYPES[arithmetic.dtype]
    # Float32 master weights: an update is often smaller than bfloat16's spacing around the
    # weight.
    model = model.to(device=target, dtype=torch.float32).eval()
    # Training reads whole sequences; the cache would only cost memory.
    model.config.use_cache = False
    # Copied before adapters are added. LoRA needs no copy: switching its adapters off gives the
    # initial model back.
    frozen = copy.deepcopy(model).requires_grad_(False) if reference and not lora_rank else None
    given_head = value_head.to(target, torch.float32) if isinstance(value_head, nn.Module) else None
    model.requires_grad_(True)
    trained: Any = (
        add_lora(model, rank=lora_rank, alpha=lora_alpha, seed=seed) if lora_rank else model
    )
    return Policy(
        model=trained,
        tokenizer=tokenizer,
        forward=_make_forward(model, torch_dtype, path),
        reference_forward=frozen and _make_forward(frozen, torch_dtype, path),
        value_head=_value_head(model, target) if value_head is True else given_head,
        dtype=arithmetic.dtype,
        # Both sources, because many chat models list only one of their end tokens in each.
        device=target,
        stop_token_ids=configured_stops(model) | stop_token_ids(tokenizer),
        dtype_reason=arithmetic.reason,
    )


def _value_head(model: PreTrainedModel, device: torch.device) -> nn.Linear:
    """Return the linear layer from final hidden state to value, initialised to zero."""
    head = nn.Linear(model.get_output_embeddings().weight.shape[-1], 1, device=device)
    # A random head would give every token a random advantage in the first step.
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _make_forward(
    model: PreTrainedModel, dtype: torch.dtype, path: Literal["auto", "generic"]
) -> Forward:
    """Return the fast forward pass if it is allowed and supports the model, else the generic."""
    if path == "auto":
        reason = misfit(model)
        if reason is None:
            return FastForward(model, dtype=dtype)
        log.info("using Hugging Face's forward pass for this model: %s", reason)
    if (problem := why_generic_fails(model)) is not None:
        refuse(model, problem)
    return GenericForward(model, dtype=dtype)
