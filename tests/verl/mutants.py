"""Plant a bug in what is learned from a teacher, run its tests, see red.

python -m tests.verl.mutants        one line a bug: which test caught it, or SURVIVED
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.mutation import Bug, hunt_all

TESTS = Path(__file__).with_name("test_distillation.py")

PACKAGE = "."
"""Where the files of the bugs are, below `orbiter.train`."""
BUGS = (
    Bug("the teacher pushes away", "engine/distillation",
        "batch.advantage - self.coef * weighted.detach()",
        "batch.advantage + self.coef * weighted.detach()"),
    Bug("the divergence replaces the reward", "engine/distillation",
        "batch.advantage - self.coef * weighted.detach()", "-self.coef * weighted.detach()"),
    Bug("the coefficient is forgotten", "engine/distillation",
        "loss = loss + self.coef * mean", "loss = loss + mean"),
    Bug("a part counts as a whole step", "engine/distillation",
        "mean * reward.share(part)", "mean"),
    Bug("weights are forgotten", "engine/distillation",
        "divergence if batch.weight is None else divergence * batch.weight", "divergence"),
    Bug("rows without a reward are idle", "engine/distillation",
        "torch.zeros_like(batch.length, dtype=torch.bool)",
        "(batch.advantage == 0).all(dim=-1)"),
    Bug("the temperature is forgotten in the gradient", "engine/forward/teacher_head",
        "made.div_(given.temperature)", "made"),
    Bug("the temperature is forgotten", "engine/forward/teacher_head",
        "logits.to(wide) / self.temperature", "logits.to(wide)"),
    Bug("rewards have no gradient beside a teacher", "engine/forward/teacher_head",
        "made.scatter_add_(1, given.token_ids[rows, None], slope.logprob[rows, None])", "pass"),
    Bug("the head learns from the last chunk", "engine/forward/teacher_head",
        "d_weight[: given.vocabulary] += ", "d_weight[: given.vocabulary] = "),
    Bug("every prompt has a given answer", "verl/teaching",
        "draw.random() < config.distill_lambda", "draw.random() > config.distill_lambda"),
    Bug("another tokenizer is not noticed", "engine/models/teacher", "if odd:", "if not ours:"),
    Bug("a shorter context is not noticed", "engine/models/teacher",
        "if teacher < longest:", "if teacher < 1:"),
    Bug("a flat step ends the run", "verl/algorithms/distill",
        "_replace(flat=False)", "_replace()"),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(hunt_all(BUGS, TESTS, package=PACKAGE))
