"""Plant a bug in the mathematics, run its tests, see red; for each bug that one really makes.

python tests/rl/mutants.py                    one line a bug: which test caught it, or SURVIVED
python tests/rl/mutants.py turns "no clip"    only the bugs of a file of rl/, or with a name
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import Phase, settings

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


class Bug(NamedTuple):
    """A line as it stands, and as somebody in a hurry would have written it."""

    what: str
    file: str
    right: str
    wrong: str


BUGS = (
    Bug("mask by multiplying", "masked", "x.masked_fill(~mask, 0.0)", "x * mask"),
    Bug("no mask in the sum", "masked",
        "only(x, mask).sum(dim=dim)", "x.nan_to_num().sum(dim=dim)"),
    Bug("population variance", "masked", "(mask.sum(dim=dim) - 1)", "mask.sum(dim=dim)"),
    Bug("variance of unmasked NaN", "masked", "    x = only(x, mask)\n", ""),
    Bug("k1 the wrong way round", "kl", "only(logprob, mask) - only(ref_logprob, mask)",
        "only(ref_logprob, mask) - only(logprob, mask)"),
    Bug("k2 without its half", "kl", ".square() / 2", ".square()"),
    Bug("k3 the wrong way round", "kl", "difference = -kl_k1", "difference = kl_k1"),
    Bug("a flat group teaches", "advantage",
        "valid & ~all_equal(reward, valid).unsqueeze(-1)", "valid"),
    Bug("worse than the group is better", "advantage",
        "reward - masked_mean(reward, valid, dim=-1).unsqueeze(-1)",
        "masked_mean(reward, valid, dim=-1).unsqueeze(-1) - reward"),
    Bug("never divided by the spread", "advantage", 'scale == "std"', 'scale == "variance"'),
    Bug("the score one token early", "advantage", ".flip(-1) == 1)", ".flip(-1) == 2)"),
    Bug("the penalty is a bonus", "advantage", "reward - kl_coef", "reward + kl_coef"),
    Bug("the value of this token, not the next", "advantage", "gamma * next_value - value[:, t]",
        "gamma * value[:, t] - value[:, t]"),
    Bug("tool tokens pass credit on", "advantage",
        "next_advantage = torch.where(trained, credit, next_advantage)", "next_advantage = credit"),
    Bug("tool tokens have values", "advantage",
        "next_value = torch.where(trained, value[:, t], next_value)", "next_value = value[:, t]"),
    Bug("lambda forgotten", "advantage", "gamma * gae_lambda * next_adv", "gamma * next_adv"),
    Bug("gamma forgotten", "advantage", "gamma * next_value", "next_value"),
    Bug("returns without the value", "advantage", "only(advantage + value, mask)", "advantage"),
    Bug("whitened without centring", "advantage",
        "centred = x - masked_mean(x, mask)", "centred = x"),
    Bug("explained is unexplained", "advantage", "1 - unexplained / ", "unexplained / "),
    Bug("the ratio upside down", "loss",
        "log_ratio = logprob - old", "log_ratio = old_logprob - logprob #"),
    Bug("the greater of the two", "loss", "-torch.minimum(free", "-torch.maximum(free"),
    Bug("rewards are minimised", "loss", "-torch.minimum(free", "torch.minimum(free"),
    Bug("one clip for both sides", "loss", "1 + high)", "1 + clip_range)"),
    Bug("no clip", "loss", "rho.clamp(1 - clip_range, 1 + high)", "rho"),
    Bug("logprobs shifted by one", "loss", "only(logprob, mask), only(old_logprob.detach(), mask)",
        "only(logprob.roll(1, -1), mask), only(old_logprob.detach(), mask)"),
    Bug("advantages shifted by one", "loss", "only(advantage.detach(), mask)",
        "only(advantage.detach().roll(1, -1), mask)"),
    Bug("a gradient into the old policy", "loss",
        "only(old_logprob.detach(), mask)", "only(old_logprob, mask)"),
    Bug("a gradient into the advantage", "loss",
        "only(advantage.detach(), mask)", "only(advantage, mask)"),
    Bug("a gradient into the return", "loss",
        "only(return_.detach(), mask)", "only(return_, mask)"),
    Bug("the KL of the wrong pair", "loss", "kl_k3(old_logprob, logprob.detach(), mask)",
        "kl_k3(logprob.detach(), old_logprob, mask)"),
    Bug("the sequence ratio is a product", "loss", "masked_mean(log_ratio.detach(), mask, dim=-1)",
        "masked_sum(log_ratio.detach(), mask, dim=-1)"),
    Bug("the value clip rewards speed", "loss",
        "torch.maximum(free, clipped)", "torch.minimum(free, clipped)"),
    Bug("the value clip around the return", "loss",
        "old_value - clip_range, old_value + clip_range",
        "return_ - clip_range, return_ + clip_range"),
    Bug("the value loss without its half", "loss",
        "torch.maximum(free, clipped) / 2", "torch.maximum(free, clipped)"),
    Bug("empty rows count", "loss",
        "mask, dim=-1), trained)", "mask, dim=-1), torch.ones_like(trained))"),
    Bug("by sequence is by token", "loss", 'aggregation == "sequence"', 'aggregation == "row"'),
    Bug("negative entropy", "loss",
        "torch.logsumexp(finite, dim=-1) - ", "-torch.logsumexp(finite, dim=-1) + "),
    Bug("entropy of impossible tokens", "loss",
        "logits.clamp(min=torch.finfo(logits.dtype).min)", "logits"),
    Bug("the episode's ratio upside down", "off_policy",
        "logprob.detach() - old_logprob", "old_logprob - logprob.detach()"),
    Bug("the episode's ratio is a mean", "off_policy",
        "of_row.new_zeros(episodes).index_add_(0, episode, of_row)",
        "of_row.new_zeros(episodes).index_copy_(0, episode, of_row)"),
    Bug("unsampled tokens in the ratio", "off_policy", "mask, dim=-1)",
        "torch.ones_like(mask), dim=-1)"),
    Bug("a gradient into the weight", "off_policy",
        "logprob.detach() - old_logprob", "logprob - old_logprob"),
    Bug("truncated from below", "off_policy", "clamp(max=limit)\n\n\ndef topr",
        "clamp(min=limit)\n\n\ndef topr"),
    Bug("good episodes are tapered, bad ones are not", "off_policy",
        "advantage < 0", "advantage >= 0"),
    Bug("bad episodes are pushed without bound", "off_policy",
        "log_ratio.exp().clamp(max=1.0)", "log_ratio.exp()"),
    Bug("the regression's temperature upside down", "off_policy",
        "(advantage / temperature)", "(advantage * temperature)"),
    Bug("the regression's weight is not bounded", "off_policy",
        "(advantage / temperature).exp().clamp(max=limit)", "(advantage / temperature).exp()"),
    Bug("the effective size without its square", "off_policy",
        "(2 * log_weight.logsumexp(0)", "(log_weight.logsumexp(0)"),
    Bug("returns without gamma", "turns", "+ gamma * after", "+ after"),
    Bug("returns up to the turn", "turns",
        "reversed(range(reward.shape[-1]))", "range(reward.shape[-1])"),
    Bug("the mean holds the episode itself", "turns",
        "count.sum(dim=axis, keepdim=True) - count", "count.sum(dim=axis, keepdim=True)"),
    Bug("the episode's own return in its baseline", "turns",
        "total.sum(dim=axis, keepdim=True) - total)", "total.sum(dim=axis, keepdim=True))"),
    Bug("a turn that one episode reached has no baseline", "turns",
        "torch.where(reached, _of_others(return_, valid.long(), axis=1), baseline)",
        "_of_others(return_, valid.long(), axis=1)"),
    Bug("compared with all turns, whatever was asked for", "turns",
        'compare == "turn"', 'compare == "index"'),
    Bug("not the scale of GRPO", "turns", "(n - 1) / n.clamp(min=1) * ", ""),
    Bug("missing turns count as zero", "turns",
        "_of_others(return_, valid.long(), axis=1)",
        "_of_others(return_, torch.ones_like(valid).long(), axis=1)"),
    Bug("turns divided by the spread unasked", "turns", 'if scale == "std":', "if True:"),
    Bug("a flat group of turns teaches", "turns", "valid & teaches", "valid"),
    Bug("states of other groups", "turns",
        "states[:, :, None] == states[:, None, :]", "states[:, :, None] >= states[:, None, :]"),
    Bug("turns that are not there have a state", "turns", "& counted[:, None, :] &", "&"),
    Bug("only the last reward of a turn", "turns", "of_turn.scatter_add(1,", "of_turn.scatter(1,"),
    Bug("the value at the end of the turn", "turns", '"amin")', '"amax")'),
    Bug("the value of a tool's answer", "turns",
        "position.masked_fill(~mask, tokens)", "position"),
    Bug("gamma by token in turns", "turns", "gamma=gamma, gae_lambda", "gamma=1.0, gae_lambda"),
    Bug("lambda lost in turns", "turns", "gae_lambda=gae_lambda)", "gae_lambda=1.0)"),
)  # fmt: skip
NO_BUG = Bug("none", "loss", "-torch.minimum(free", "-torch.minimum(free")
"""The control: with it, all must be green."""


class Catch:
    """Remembers the first test that failed."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a failure."""
        if report.failed and not self.name:
            self.name = report.nodeid.rpartition("::")[2].partition("[")[0]


def hunt(bug: Bug, folder: Path) -> str:
    """Return the name of a test that a bug makes fail, or "" where all stay green."""
    source = shutil.copytree(SOURCE, folder / "src")
    path = source / "orbiter" / "train" / "rl" / f"{bug.file}.py"
    text = path.read_text(encoding="utf-8")
    if bug.right not in text:
        return "NOT PLANTED: the line is gone"
    path.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")
    sys.path.insert(0, str(source))
    catch = Catch()
    options = ["-x", "-q", "-m", "not nightly", "--hypothesis-profile=hunt"]
    own = HERE / f"test_{bug.file}.py"  # the likeliest to notice, so it runs first
    options += [str(own), str(HERE)] if own.exists() else [str(HERE)]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(options, plugins=[catch])
    return catch.name


def forked(bug: Bug) -> str:
    """Hunt in a process of its own, which finds torch already imported."""
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "answer"
        pid = os.fork()
        if pid == 0:
            answer.write_text(hunt(bug, Path(name)), encoding="utf-8")
            os._exit(0)
        os.waitpid(pid, 0)
        return answer.read_text(encoding="utf-8") if answer.exists() else "NO ANSWER"


def main() -> int:
    """Hunt every bug of the files asked for; the exit code is the number that survived."""
    wanted = set(sys.argv[1:])
    bugs = [bug for bug in BUGS if not wanted or wanted & {bug.file, bug.what}]
    if not bugs:
        raise SystemExit(f"no bug is in {sys.argv[1:]}; files: {sorted({b.file for b in BUGS})}")
    torch.set_num_threads(1)
    settings.register_profile(
        "hunt", derandomize=True, deadline=None, database=None, phases=[Phase.generate]
    )
    if name := forked(NO_BUG):
        raise SystemExit(f"red without a bug: {name}")
    survived = []
    for bug in bugs:
        name = forked(bug)
        if not name.startswith("test_"):
            survived.append(bug.what)
        sys.stdout.write(f"{bug.what:40} {name or 'SURVIVED'}\n")
        sys.stdout.flush()
    sys.stdout.write(json.dumps({"bugs": len(bugs), "survived": survived}) + "\n")
    return len(survived)


if __name__ == "__main__":
    sys.exit(main())
