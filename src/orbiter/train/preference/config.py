"""The settings of learning from preferences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from orbiter.train.checks import Number, OneOf, OrNone, WholeNumber, setting, setting_like
from orbiter.train.engine.config import EngineConfig
from orbiter.train.errors import ConfigError


class PreferenceMethod(StrEnum):
    """The losses of preferences; the string values are accepted as well."""

    DPO = "dpo"
    """The log likelihood of the preferences under the reward that the policy implies."""
    IPO = "ipo"
    """DPO with a squared loss, which asks for a certain margin instead of ever more."""
    KTO = "kto"
    """Single answers, each good or bad, instead of pairs."""
    ORPO = "orpo"
    """Imitation of the better answer, plus its odds against the worse one; no reference."""
    SIMPO = "simpo"
    """Likelihood per token as the reward, with a margin; no reference."""

    @property
    def is_paired(self) -> bool:
        """Whether it learns from pairs rather than from single answers."""
        return self is not PreferenceMethod.KTO

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the policy with the model that it began as."""
        return self not in (PreferenceMethod.ORPO, PreferenceMethod.SIMPO)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig(EngineConfig):
    """How pairs of a better and a worse answer are made from a data set."""

    compare: Literal["episode", "answer"] = setting(
        "episode",
        "What a pair consists of: whole episodes (the items of an episode_id; items without one "
        "are single answers), or the single answers of all items.",
        OneOf(("episode", "answer")),
    )
    min_margin: float = setting(
        0.0,
        "Smallest difference of the two rewards of a pair; even at 0 they must differ.",
        Number(at_least=0),
    )
    pairs_per_task: int | None = setting(
        None,
        "Most pairs of a task, those with the widest difference of rewards first; none uses each "
        "attempt once: the best with the worst, the second best with the second worst, and so on.",
        OrNone(WholeNumber(at_least=1)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig(PairConfig):
    """The settings of learning from preferences; a step is one update on `batch_size` pairs."""

    method: PreferenceMethod = setting(
        PreferenceMethod.DPO,
        "The loss: " + ", ".join(PreferenceMethod) + ".",
        OneOf(tuple(str(method) for method in PreferenceMethod)),
    )
    batch_size: int = setting_like(
        EngineConfig, "batch_size", 8, "Pairs of one update; with kto, answers."
    )
    max_response_length: int = setting_like(
        EngineConfig,
        "max_response_length",
        256,
        "Largest answer of generate() in tokens; answers of the data may be longer.",
    )
    beta: float | None = setting(
        None,
        "How strongly the policy is held to the reference (dpo, ipo, kto), the weight of the odds "
        "ratio (orpo), or the scale of the reward (simpo); none means 0.1, with simpo 2.",
        OrNone(Number(above=0)),
    )
    label_smoothing: float = setting(
        0.0,
        "With dpo: the share of preferences expected to be the wrong way round.",
        Number(at_least=0, below=0.5),
    )
    simpo_gamma: float = setting(
        1.0, "With simpo: the margin between the two rewards that is asked for.", Number(at_least=0)
    )
    good_reward: float = setting(
        0.5, "With kto: answers with at least this reward are desirable.", Number()
    )
    desirable_weight: float = setting(
        1.0, "With kto: weight of the loss of desirable answers.", Number(at_least=0)
    )
    undesirable_weight: float = setting(
        1.0, "With kto: weight of the loss of undesirable answers.", Number(at_least=0)
    )

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        # A plain string compares equal to the member but has none of its properties.
        object.__setattr__(self, "method", PreferenceMethod(self.method))
        for name, method in _ONLY_WITH.items():
            default = type(self).__dataclass_fields__[name].default
            value = getattr(self, name)
            if value != default and self.method is not method:
                raise ConfigError(
                    f"{name}={value!r} has no effect with method={str(self.method)!r}, only with "
                    f"{str(method)!r}; leave it out"
                )
        if not self.method.is_paired and (self.min_margin or self.pairs_per_task):
            name = "min_margin" if self.min_margin else "pairs_per_task"
            raise ConfigError(f"{name} has no effect with method='kto', which makes no pairs")
        if not self.desirable_weight and not self.undesirable_weight:
            raise ConfigError("desirable_weight and undesirable_weight must not both be 0")

    @property
    def strength(self) -> float:
        """The value of `beta`, or the method's usual one."""
        if self.beta is not None:
            return self.beta
        return 2.0 if self.method is PreferenceMethod.SIMPO else 0.1


_ONLY_WITH: Mapping[str, PreferenceMethod] = {
    "label_smoothing": PreferenceMethod.DPO,
    "simpo_gamma": PreferenceMethod.SIMPO,
    "good_reward": PreferenceMethod.KTO,
    "desirable_weight": PreferenceMethod.KTO,
    "undesirable_weight": PreferenceMethod.KTO,
}
