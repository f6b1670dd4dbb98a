"""AdamW over a policy's trained tensors, with its state saved and loaded as named tensors.

Learning-rate schedules are not handled here: the training loop sets `learning_rate` before a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from orbiter.train.engine.policy import Policy
from orbiter.train.errors import DataError, TrainingError

STATE = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state for each tensor."""


class Optimiser:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) as one fused kernel."""

    def __init__(self, named: Mapping[str, nn.Parameter], adamw: torch.optim.AdamW) -> None:
        """Wrap `adamw` over these parameters; use `make_optimiser` to create one."""
        self.named = dict(named)
        self.adamw = adamw

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.adamw.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = value

    def step(self, *, max_grad_norm: float) -> float:
        """Clip the gradients' joint norm, take a step, and return the norm before clipping.

        Raises:
            TrainingError: the norm is not finite; no parameter was changed.
        """
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        if not gradients:
            return 0.0
        # One kernel over all tensors; clip_grad_norm_ would do the same and clip before the check.
        norms = torch._foreach_norm(gradients)
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        # Checked before AdamW: one NaN in a gradient would reach every weight through the
        # clipping factor.
        if not torch.isfinite(torch.tensor(norm)):
            raise TrainingError(f"the gradient is not finite (norm {norm}): lower learning_rate")
        if norm > max_grad_norm:
            # The joint norm is clipped, which keeps the direction of the gradient.
            torch._foreach_mul_(gradients, max_grad_norm / norm)
        self.adamw.step()
        self.zero()
        return norm

    def zero(self) -> None:
        """Discard the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return AdamW's state as "<parameter>.<name>"; empty before the first step."""
        return {
            f"{name}.{key}": self.adamw.state[parameter][key]
            for name, parameter in self.named.items()
            for key in STATE
            if key in self.adamw.state[parameter]
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a saved state; each of its tensors must belong to a trained parameter."""
        left = dict(tensors)
        for name, parameter in self.named.items():
            # The steps are tensors too: AdamW's bias correction depends on their exact value.
            saved = {key: left.pop(f"{name}.{key}", None) for key in STATE}
            if any(tensor is None for tensor in saved.values()):
                continue  # this parameter has had no gradient so far
            self.adamw.state[parameter] = {
                # A copy, since AdamW writes to its state in place.
                key: tensor.to(parameter.device, copy=True)
                for key, tensor in saved.items()
                if tensor is not None
            }
        # Left-over tensors mean that another model or other adapters were trained.
        if left:
            raise DataError(f"the saved optimiser has unknown tensors: {sorted(left)[:4]}")


def make_optimiser(
    policy: Policy,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimiser:
    """Return AdamW over all parameters that the policy trains."""
    named = policy.named_trainable()
    fused = policy.device.type in ("cpu", "cuda", "mps")
    adamw = torch.optim.AdamW(
        list(named.values()),
        lr=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        fused=fused,
    )
    return Optimiser(named, adamw)
