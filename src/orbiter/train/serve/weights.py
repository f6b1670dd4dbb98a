"""Detect that a policy's weights have changed since they were prepared for sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy

PROBED = 4
"""Elements of each tensor that are compared: an optimiser's step changes them all."""


class WeightsWatch:
    """A few remembered elements of every weight, to compare with the current ones.

    PyTorch's own version counters do not help: fused optimisers do not raise them.
    """

    @torch.inference_mode()
    def __init__(self, policy: Policy) -> None:
        """Remember the current weights."""
        self._parameters = list(policy.model.parameters())
        self._memory = [parameter.data_ptr() for parameter in self._parameters]
        self._views = [parameter.detach().flatten()[:PROBED] for parameter in self._parameters]
        self._values = self._now()

    @torch.inference_mode()
    def changed(self) -> bool:
        """Return whether any weight differs from the remembered one."""
        memory = [parameter.data_ptr() for parameter in self._parameters]
        return memory != self._memory or not torch.equal(self._now(), self._values)

    def _now(self) -> Tensor:
        # NaN differs from itself, but weights that were NaN before have not changed.
        return torch.cat([view.float() for view in self._views]).nan_to_num_(nan=0.0)
