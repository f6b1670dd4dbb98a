"""Send reward functions to verl's workers: by import path if possible, else as source code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orbiter.train.errors import ConfigError
from orbiter.train.verl.cluster.sources import code_of
from orbiter.train.verl.reward import RewardSpec

MODULE = '''"""The rewards of this run, as verl calls them; `rewards.json` lists them."""

from orbiter.train.verl.cluster.inside.reward import load

compute_score = load(__file__)
'''
"""Source of the module that verl loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A reward in the form that is sent to the workers."""

    name: str
    weight: float
    module: str
    """Name of the module that defines the function."""
    function: str
    file: str | None
    """File with its source, next to the reward module; None if the function is imported."""
    source: str | None
    """Content of that file."""
    root: str | None
    """Folder to import the module from; None if the module is installed."""


def ship(rewards: Sequence[RewardSpec]) -> list[Shipped]:
    """Return each reward in a form that can be sent to the workers.

    Raises:
        ConfigError: a reward cannot be sent; the message gives the reward, the reason and a remedy.
    """
    # Numbered, because a reward's name may hold anything and a file's may not.
    return [_ship(spec, f"reward_{place}") for place, spec in enumerate(rewards)]


def _ship(spec: RewardSpec, stem: str) -> Shipped:
    if spec.judge is not None:
        raise ConfigError(
            f"reward {spec.name!r} is a judge, whose model, cache and limits are in this process; "
            "verl's workers cannot reach them: use backend='local', or write a function that asks "
            "your endpoint"
        )
    code = code_of(spec.fn, f"reward {spec.name!r}", stem)
    return Shipped(
        name=spec.name,
        weight=float(spec.weight),
        module=code.module,
        function=code.function,
        file=code.file,
        source=code.source,
        root=code.root,
    )
