"""verl's metrics under our names; its own stay beside them.

Left out: what verl does not measure. A metric that is absent there is absent here.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

from orbiter.train.verl.config import VeRLAlgorithm

NAMES: Mapping[str, str] = {
    "reward": "critic/score/mean",
    "loss": "actor/loss",
    "pg_loss": "actor/pg_loss",
    "entropy": "actor/entropy",
    "grad_norm": "actor/grad_norm",
    "clip_fraction": "actor/pg_clipfrac",
    "approx_kl": "actor/ppo_kl",
    "learning_rate": "actor/lr",
    "length": "response_length/mean",
    "cut_off": "response_length/clip_ratio",
    "value": "critic/values/mean",
    "vf_loss": "critic/vf_loss",
    "explained_variance": "critic/vf_explained_var",
    "reward_std": "reward_std",
    "reward_faults": "reward_faults",
}
"""Our name of a metric, and verl's."""
KL: Mapping[VeRLAlgorithm, str] = {
    VeRLAlgorithm.GRPO: "actor/kl_loss",
    VeRLAlgorithm.PPO: "actor/reward_kl_penalty",
}
"""Where verl keeps the KL from the reference: in GRPO the k3 of the loss, in PPO the k1."""
CLOCK = ("timing_s/", "timing_per_token_ms/", "perf/")
"""What the clock says, which is kept apart from the metrics."""
OWN = "verl/"
"""Before verl's own name of a metric."""


class Row(NamedTuple):
    """What one step measured."""

    metrics: dict[str, float]
    clock: dict[str, float]


def as_row(data: Mapping[str, object], algorithm: VeRLAlgorithm) -> Row:
    """Return a line of verl's metrics as ours; what is no number is left out."""
    numbers = {k: float(v) for k, v in data.items() if isinstance(v, int | float)}
    named = {ours: numbers[theirs] for ours, theirs in NAMES.items() if theirs in numbers}
    if KL[algorithm] in numbers:
        named["kl"] = numbers[KL[algorithm]]
    named |= {k: v for k, v in numbers.items() if k.startswith("reward/")}
    named |= _validated(numbers)
    taken = {*NAMES.values(), *named}
    clock = {OWN + k: v for k, v in numbers.items() if k.startswith(CLOCK)}
    others = {OWN + k: v for k, v in numbers.items() if not k.startswith(CLOCK) and k not in taken}
    seconds = numbers.get("timing_s/step", 0.0)
    tokens = numbers.get("perf/total_num_tokens", 0.0)
    clock |= {"seconds": seconds}
    if seconds > 0:
        clock["tokens_per_second"] = tokens / seconds
    return Row(named | others, clock)


def _validated(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return a validation's rewards: `val-core/<source>/reward/mean@1` and its kin.

    Sources, which may have slashes in their names, count alike.
    """
    held: dict[str, list[float]] = {}
    for key, value in numbers.items():
        kind, *parts = key.split("/")
        if kind in {"val-core", "val-aux"} and "reward" in parts and parts[-1][:5] == "mean@":
            name = "/".join(parts[parts.index("reward") : -1])
            held.setdefault(f"eval/{name}", []).append(value)
    return {name: fmean(values) for name, values in held.items()}
