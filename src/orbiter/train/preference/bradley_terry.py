"""The loss of reward models: the likelihood of the preferences under Bradley and Terry's model.

Bradley and Terry 1952, https://doi.org/10.1093/biomet/39.3-4.324; for reward models, Ouyang et al.
2022, equation 1, https://arxiv.org/abs/2203.02155.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from orbiter.train.engine.batch import Batch
from orbiter.train.engine.update import Part, Scored
from orbiter.train.errors import StateError
from orbiter.train.preference.encoding import CHOSEN, AttemptBatch


def bradley_terry_loss(
    chosen: Float[Tensor, "N"],
    rejected: Float[Tensor, "N"],
    *,
    margin: Float[Tensor, "N"] | None = None,
    centering_coef: float = 0.0,
) -> Float[Tensor, "N"]:
    """Return the loss of each pair.

        L = -log sigmoid(r_w - r_l - margin) + centering_coef (r_w + r_l)^2

    The margin asks for more distance between answers that differ more (Touvron et al. 2023,
    section 3.2.2, https://arxiv.org/abs/2307.09288). The last term keeps scores near zero, which
    the likelihood leaves open (Eisenstein et al. 2023, section 2, https://arxiv.org/abs/2312.09244).

    Args:
        chosen: Scores of the better answers.
        rejected: Scores of the worse answers.
        margin: The margin of each pair; None means 0.
        centering_coef: Weight of the last term.
    """
    distance = chosen - rejected
    # logsigmoid, since log(sigmoid(x)) underflows for a large negative x.
    loss = -logsigmoid(distance if margin is None else distance - margin)
    return loss + centering_coef * (chosen + rejected).square() if centering_coef else loss


@dataclass(frozen=True, slots=True, kw_only=True)
class BradleyTerryObjective:
    """The mean loss over the pairs of a step, exact however they are cut into micro-batches."""

    margin: Float[Tensor, "U"]
    """The margin of each pair of the step."""
    centering_coef: float

    def __call__(
        self, scored: Scored, batch: Batch, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's share of the mean, and metrics as means over its pairs."""
        if not isinstance(batch, AttemptBatch) or batch.unit is None or scored.value is None:
            raise StateError("this objective needs pairs, and a policy with a head for scores")
        # All other positions are 0, so the sum picks the score.
        score = scored.value.sum(dim=-1)  # one position of each row is scored
        # Sorts the chosen side of each pair before the rejected one, pair after pair.
        order = torch.argsort(batch.unit * 2 + batch.side)
        chosen, rejected = score[order].view(-1, 2).unbind(dim=1)
        units = batch.unit[order][CHOSEN::2]
        margin = self.margin.to(score)[units]
        loss = bradley_terry_loss(
            chosen, rejected, margin=margin, centering_coef=self.centering_coef
        )
        distance = (chosen - rejected).detach()
        # Every pair has two rows of one token each, so a share of rows is a share of pairs.
        return loss.mean() * part.rows, {
            "accuracy": (distance > 0).to(distance.dtype).mean(),
            "margin": distance.mean(),
            "score": score.detach().mean(),
            "score_spread": score.detach().square().mean().sqrt(),
        }

    def idle(self, batch: Batch) -> Bool[Tensor, "B"]:
        """Every pair has a gradient."""
        return torch.zeros_like(batch.length, dtype=torch.bool)
