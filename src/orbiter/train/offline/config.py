"""The settings of learning from logged episodes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from orbiter.train.checks import Boolean, Number, OneOf, OrNone, setting, setting_like
from orbiter.train.engine.config import EngineConfig
from orbiter.train.errors import ConfigError


class OfflineMethod(StrEnum):
    """How a logged episode becomes a gradient; the string values are accepted as well."""

    TIS = "tis"
    """Truncated importance sampling: the policy gradient, each episode weighted by how much
    likelier it has become."""
    TOPR = "topr"
    """Good episodes are imitated, bad ones pushed away as far as the policy still does them."""
    AWR = "awr"
    """Advantage-weighted regression: imitation, weighted by the exponential of the advantage."""
    IMITATE = "imitate"
    """Reward-weighted imitation: each episode counts in proportion to its reward."""

    @property
    def needs_logprobs(self) -> bool:
        """Whether the method compares the policy with the one that sampled."""
        return self in (OfflineMethod.TIS, OfflineMethod.TOPR)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineConfig(EngineConfig):
    """The settings of learning from logged episodes; a step is one update on `batch_size` tasks."""

    method: OfflineMethod = setting(
        OfflineMethod.TOPR,
        "How a logged episode becomes a gradient: " + ", ".join(OfflineMethod) + ".",
        OneOf(tuple(str(method) for method in OfflineMethod)),
    )
    epochs: int = setting_like(EngineConfig, "epochs", 1, "Passes over the tasks.")
    batch_size: int = setting_like(
        EngineConfig, "batch_size", 8, "Tasks of one step, with all their logged episodes."
    )
    eval_every: int | None = setting_like(
        EngineConfig,
        "eval_every",
        None,
        "Steps between two validations on eval_dataset; none means only after the end.",
    )
    baseline: Literal["task", "dataset", "none"] = setting(
        "task",
        "The baseline that an episode's reward is compared with: the mean of its task's "
        "episodes, the mean "
        "of all episodes, or zero.",
        OneOf(("task", "dataset", "none")),
    )
    scale_rewards: bool = setting(
        True,
        "Divide advantages by the standard deviation of the rewards that they are compared with.",
        Boolean(),
    )
    loss_aggregation: Literal["token", "episode", "constant"] = setting(
        "token",
        "Weight of a token: the same for all tokens of a step; the same for all episodes, whatever "
        "their length; or one that depends on neither.",
        OneOf(("token", "episode", "constant")),
    )
    importance: Literal["episode", "token"] = setting(
        "episode",
        'With method="tis": one ratio for each episode, the product of its tokens\', or one for '
        "each token, which has less variance and is biased.",
        OneOf(("episode", "token")),
    )
    max_importance: float | None = setting(
        2.0,
        'With method="tis": larger ratios are cut to this; none cuts none, which is unbiased.',
        OrNone(Number(above=0)),
    )
    awr_temperature: float = setting(
        1.0,
        'With method="awr": advantages are divided by it; lower is greedier.',
        Number(above=0),
    )
    awr_limit: float = setting(20.0, 'With method="awr": largest weight.', Number(above=0))
    temperature: float = setting(
        1.0,
        "Temperature at which the log probabilities were recorded, and at which those of the "
        "policy are computed.",
        Number(above=0),
    )
    min_effective_share: float = setting(
        0.1,
        "Effective sample size of the episodes, as a share of their number, below which the run is "
        "refused or ends: the policy is then too far from the one that sampled.",
        Number(at_least=0, at_most=1),
    )
    failed_episodes: bool = setting(
        False,
        "Whether to learn from episodes whose agent failed too.",
        Boolean(),
    )

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        object.__setattr__(self, "method", OfflineMethod(self.method))
        for name, why in (
            ("system_prompt", "captured prompts are read as they are"),
            ("max_prompt_length", "captured prompts are read as they are"),
        ):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} has no effect on logged episodes: {why}; leave it out")
        if self.on_long_prompt == "truncate-left":
            raise ConfigError(
                "on_long_prompt='truncate-left' would change captured prompts, to which the log "
                "probabilities belong; use 'error' or 'drop'"
            )
        if self.importance == "token" and self.method is not OfflineMethod.TIS:
            raise ConfigError(
                f"importance='token' goes with method='tis' only, got method={str(self.method)!r}"
            )
