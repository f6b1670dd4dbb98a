"""Plant a bug in what preferences are learned by, run its tests, see red.

python -m tests.preference.mutants        one line a bug: which test caught it, or SURVIVED
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.mutation import Bug, hunt_all

HERE = Path(__file__).parent

PACKAGE = "preference"
"""Where the files of the bugs are, below `orbiter.train`."""
BUGS = (
    Bug("the preference the wrong way round", "methods/dpo",
        "margin = chosen_reward - rejected_reward", "margin = rejected_reward - chosen_reward"),
    Bug("no reference", "methods/dpo",
        "beta * (chosen.logprob - chosen.ref_logprob)", "beta * chosen.logprob"),
    Bug("the reference added", "methods/dpo", "rejected.logprob - rejected.ref_logprob",
        "rejected.logprob + rejected.ref_logprob"),
    Bug("smoothing without the other side", "methods/dpo",
        " - label_smoothing * logsigmoid(-margin)", ""),
    Bug("the reward has a gradient", "methods/dpo",
        "chosen_reward.detach()", "chosen_reward.clone()"),
    Bug("KTO's reward has a gradient", "methods/kto", "beta * advantage.detach()",
        "beta * advantage"),
    Bug("IPO sums over tokens", "methods/ipo",
        "(chosen.logprob - chosen.ref_logprob) / chosen.tokens",
        "(chosen.logprob - chosen.ref_logprob)"),
    Bug("IPO's margin is 1 / beta", "methods/ipo", "1 / (2 * beta)", "1 / beta"),
    Bug("IPO is not squared", "methods/ipo", ".square()", ".abs()"),
    Bug("ORPO without imitation", "methods/orpo", "loss = -better - beta", "loss = -beta"),
    Bug("ORPO's odds are probabilities", "methods/orpo",
        " - (_log_complement(better) - _log_complement(worse))", ""),
    Bug("ORPO's odds upside down", "methods/orpo",
        "(better - worse) - (_log", "(worse - better) - (_log"),
    Bug("ORPO's certain answer is infinite", "methods/orpo",
        "    logprob = logprob.clamp(max=ALMOST_CERTAIN)\n", ""),
    Bug("SimPO's margin is given away", "methods/simpo", "worse - gamma", "worse + gamma"),
    Bug("SimPO sums over tokens", "methods/losses",
        "self.logprob / self.tokens", "self.logprob"),
    Bug("KTO imitates what is bad", "methods/kto",
        "torch.where(desirable, advantage, -advantage)", "advantage"),
    Bug("KTO's weights swapped", "methods/kto",
        "advantage.new_tensor(desirable_weight), advantage.new_tensor(undesirable_weight)",
        "advantage.new_tensor(undesirable_weight), advantage.new_tensor(desirable_weight)"),
    Bug("KTO without a reference point", "methods/kto", " - kl.detach().clamp(min=0)", ""),
    Bug("KTO's reference point may be negative", "methods/kto", ".clamp(min=0)", ""),
    Bug("KTO's reference point has a gradient", "methods/kto", "kl.detach()", "kl"),
    Bug("the divergence without its reference", "methods/kto",
        "(mismatched.logprob - mismatched.ref_logprob)", "mismatched.logprob"),
    Bug("a micro-batch counts as a whole step", "objective",
        "losses.loss.mean() * share, _by_units(metrics, share, part)",
        "losses.loss.mean(), _by_units(metrics, share, part)"),
    Bug("metrics weighted by tokens", "objective",
        "values.mean() * (share / part.tokens)", "values.mean()"),
    Bug("the sides swapped", "objective", "[:, CHOSEN]", "[:, REJECTED]"),
    Bug("the best with the best", "pairs",
        "(best[index], best[-1 - index])", "(best[index], best[index + half])"),
    Bug("the rows of a preference file are mixed", "pairs",
        "if stated is not None:", "if False:"),
    Bug("the worst is chosen", "pairs",
        "sorted(group, key=_reward, reverse=True)", "sorted(group, key=_reward)"),
    Bug("episodes paired with anything", "pairs", "key = first.task_id if by_id else", "key ="),
    Bug("the reward of the first step", "pairs", "last = items[-1]", "last = items[0]"),
    Bug("the present policy is the reference", "trainer",
        "if policy.adapted or self._moved is not policy:", "if True:"),
    Bug("adapters stay on in the reference", "trainer",
        "reference=policy.adapted", "reference=False"),
    Bug("the reference is forgotten", "reference",
        "        self._known |= {record[", "        {} | {record["),
    Bug("another model's reference is used", "reference", "if not is_new_run:", "if False:"),
    Bug("the KL from matched answers", "material",
        "_joined(attempt, attempts[other], context)", "_joined(attempt, attempt, context)"),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(hunt_all(BUGS, HERE, package=PACKAGE))
