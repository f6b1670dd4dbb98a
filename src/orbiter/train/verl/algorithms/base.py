"""The interface of an algorithm, and the settings that all algorithms share.

This file does not import torch, so a config can be created and checked without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from orbiter.train.checks import Number, OneOf, OrNone, WholeNumber, setting, setting_like
from orbiter.train.engine.config import EngineConfig
from orbiter.train.errors import ConfigError
from orbiter.train.trainer.config import NotInVerl, VerlKeys

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from orbiter.train.engine.batch import Batch
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.update import Objective

ACTOR = "actor_rollout_ref.actor"
"""The part of verl's configuration that holds the policy's update."""
V1 = "trainer.v1"
"""The part of verl's configuration that says how sampling and training take turns."""
KL_NAMES: Mapping[str, str] = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}
"""verl's name of each KL estimator."""

KlEstimator = Literal["k1", "k2", "k3"]
Credit = Literal["episode", "turn", "returns", "gigpo"]
"""The unit that credit is assigned to in an agent's episodes; see docs/algorithms.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig(EngineConfig):
    """The settings that every algorithm reads."""

    epochs: int = setting_like(EngineConfig, "epochs", 1, "Passes over the prompts.")
    batch_size: int = setting_like(
        EngineConfig,
        "batch_size",
        8,
        "Prompts of one step. The last step of an epoch takes the rest.",
    )
    group_size: int = setting(
        8,
        "Samples of each prompt in a step; algorithms that compare samples need at least 2.",
        WholeNumber(at_least=1),
        verl=VerlKeys(("actor_rollout_ref.rollout.n",), read_back=True),
    )
    eval_every: int | None = setting_like(
        EngineConfig,
        "eval_every",
        None,
        "Steps between two validations on eval_dataset; none means only after the end.",
    )
    gamma: float = setting(
        1.0,
        "Discount of PPO, of each token; of each turn where credit goes by turn.",
        Number(at_least=0, at_most=1),
        verl=VerlKeys(("algorithm.gamma",)),
    )
    credit: Credit = setting(
        "episode",
        "With agent=: episode compares whole episodes, or for PPO goes by token; turn compares the "
        "returns of the same turn (MT-GRPO), or for PPO goes by turn; returns compares the returns "
        "of all turns (Kevin); gigpo also compares turns with the same prompt.",
        OneOf(("episode", "turn", "returns", "gigpo")),
        verl=NotInVerl("its estimators give an episode one advantage; use credit='episode'"),
    )
    gigpo_weight: float = setting(
        1.0,
        "With credit='gigpo': weight of the comparison of turns with the same prompt.",
        Number(at_least=0),
        verl=NotInVerl("verl has no GiGPO"),
    )
    temperature: float = setting(
        1.0,
        "Sampling temperature; training uses the log probabilities of the same distribution.",
        Number(above=0),
        verl=VerlKeys(("actor_rollout_ref.rollout.temperature",)),
    )
    kl_coef: float = setting(
        0.0,
        "Weight of the KL from the initial model: a term of the loss, or for PPO a penalty on "
        "each token's reward. 0 needs no reference model.",
        Number(at_least=0),
        verl=VerlKeys((f"{ACTOR}.kl_loss_coef", "algorithm.kl_ctrl.kl_coef"), written=False),
    )
    kl_estimator: KlEstimator | None = setting(
        None,
        "Estimate of the KL: k1, k2 or k3; none means k1 for a penalty on the reward (PPO) and k3 "
        "in the loss, where k1 is refused since its gradient is zero on average.",
        OrNone(OneOf(("k1", "k2", "k3"))),
        verl=VerlKeys((f"{ACTOR}.kl_loss_type", "algorithm.kl_penalty"), written=False),
    )
    clip_range: float = setting(
        0.2,
        "PPO's epsilon: the loss does not reward a ratio to the sampling policy outside "
        "[1 - clip_range, 1 + clip_range].",
        Number(above=0, below=1),
        verl=VerlKeys((f"{ACTOR}.clip_ratio", f"{ACTOR}.clip_ratio_low")),
    )
    clip_range_high: float | None = setting(
        None,
        "Epsilon of the upper bound (DAPO's clip-higher); none means clip_range.",
        OrNone(Number(above=0)),
        verl=VerlKeys((f"{ACTOR}.clip_ratio_high",), written=False),
    )
    loss_aggregation: Literal["token", "sequence", "constant", "episode"] = setting(
        "token",
        "Mean over all tokens; mean over sequences of each one's mean; sum over tokens divided "
        "by sequences times max_response_length (Dr. GRPO); or, with agent=, mean over episodes of "
        "each one's mean.",
        OneOf(("token", "sequence", "constant", "episode")),
        verl=VerlKeys(
            (f"{ACTOR}.loss_agg_mode",),
            values={
                "token": "token-mean",
                "sequence": "seq-mean-token-mean",
                "constant": "seq-mean-token-sum-norm",
            },
        ),
    )
    ent_coef: float = setting(
        0.0,
        "Weight of the entropy bonus.",
        Number(at_least=0),
        verl=VerlKeys((f"{ACTOR}.entropy_coeff",)),
    )
    ppo_epochs: int = setting(
        1,
        "Passes over the samples of a step, for every algorithm. One pass in one minibatch is "
        "exactly on-policy: every ratio is 1 and nothing is clipped.",
        WholeNumber(at_least=1),
        verl=VerlKeys((f"{ACTOR}.ppo_epochs",)),
    )
    minibatch_size: int = setting(
        0,
        "Samples of one optimiser update; 0 takes all samples of the step.",
        WholeNumber(at_least=0),
        verl=VerlKeys((f"{ACTOR}.ppo_mini_batch_size",), written=False),
    )
    max_staleness: int = setting(
        0,
        "Steps by which the policy that samples may lag behind the one in training: with more than "
        "0, verl samples the next step's batch during an update. 0 samples and trains in turn.",
        WholeNumber(at_least=0),
        verl=VerlKeys(
            (f"{V1}.trainer_mode", f"{V1}.sampler.max_off_policy_threshold"), written=False
        ),
    )
    max_importance: float = setting(
        2.0,
        "With max_staleness: largest weight of a token by how much likelier the policy in training "
        "makes it than the one that sampled it (truncated importance sampling). Not with agent=.",
        Number(at_least=1),
        verl=VerlKeys(("algorithm.rollout_correction.rollout_is_threshold",), written=False),
    )
    target_kl: float | None = setting(
        None,
        "A step's updates end once the KL from the sampling policy, in nats a token, exceeds this.",
        OrNone(Number(above=0)),
        verl=NotInVerl("verl takes all updates of a step"),
    )

    @property
    def samples_per_step(self) -> int:
        """Number of samples in a full step."""
        return self.batch_size * self.group_size

    @property
    def updates_per_step(self) -> int:
        """Number of optimiser updates in a full step."""
        # 0 means one minibatch with all samples of the step.
        size = self.minibatch_size or self.samples_per_step
        return self.ppo_epochs * math.ceil(self.samples_per_step / size)


class Credited(NamedTuple):
    """The samples of a step as a batch with advantages, and metrics of the credit assignment."""

    batch: Batch | None
    """None if every sample was skipped."""
    metrics: dict[str, float]
    flat: bool
    """Whether all samples that are compared with each other got the same reward."""


class Turns(NamedTuple):
    """The turns of a step's episodes."""

    of_token: Int[Tensor, "B T"]
    """The turn of its episode that sampled each trained token; -1 if not trained."""
    reward: Float[Tensor, "P G K"]
    """Step rewards of each turn, and the reward of the outcome in the last one; in float64."""
    valid: Bool[Tensor, "P G K"]
    """True for turns that exist, in episodes that have a reward."""
    state: Int[Tensor, "P G K"]
    """A number for each prompt; turns of a group with exactly the same prompt share it."""

    def to(self, device: object) -> Turns:
        """Return the turns with their tokens on `device`; the rest stays on the CPU."""
        return self._replace(of_token=self.of_token.to(device))  # type: ignore[call-overload]


class Samples(NamedTuple):
    """The samples of a step that have a reward, before credit is assigned."""

    policy: Policy
    batch: Batch
    """One row for each sample that has a reward, or for each stream if samples are episodes."""
    reward: Float[Tensor, "P G"]
    """Rewards by prompt, in float64; 0 for a skipped sample."""
    valid: Bool[Tensor, "P G"]
    """True for samples that have a reward."""
    sample_of_row: Int[Tensor, "B"]
    """The index, among the samples with a reward, that each row belongs to."""
    turns: Turns | None = None
    """None if the samples are answers to prompts."""


C_contra = TypeVar("C_contra", bound=RewardConfig, contravariant=True)
"""The config with an algorithm's own settings."""


class Algorithm(ABC, Generic[C_contra]):
    """Turns rewards into gradients: credit assignment, objective, and verl's keys for both.

    A new algorithm is a subclass in its own file of this folder, a member of `VeRLAlgorithm` and a
    line in `ALGORITHMS`. One that extends another algorithm must override its `verl_overrides`.
    """

    title: ClassVar[str]
    """Its name in logs and model cards."""
    summary: ClassVar[str]
    """One sentence that helps a user to choose an algorithm."""
    value_head: ClassVar[bool] = False
    """Whether it needs a value function: a head on the policy here, a critic in verl."""
    least_group: ClassVar[int] = 1
    """The smallest `group_size` it supports."""
    needs_reward: ClassVar[bool] = True
    """Whether it learns from rewards only, so that a run without any is refused."""
    verl_kl: ClassVar[str] = "actor/kl_loss"
    """verl's metric for the KL from the reference."""

    def check(self, config: C_contra) -> None:
        """Refuse settings that this algorithm cannot use.

        Raises:
            ConfigError: names the settings and their values.
        """
        # Checked before training, since the comparison would only fail in the first credit
        # assignment.
        if config.group_size < self.least_group:
            raise ConfigError(
                f"group_size={config.group_size}: {self.title} compares the samples of one prompt "
                f"with each other, so it needs at least {self.least_group} (4 to 16 are usual); "
                "PPO works with 1"
            )
        # d/dtheta E[log pi - log ref] sampled from pi is E[grad log pi] = 0 (Schulman 2020,
        # "Approximating KL divergence"). As a penalty on the reward, as with PPO, k1 is right.
        if config.kl_estimator == "k1" and not self.value_head:
            raise ConfigError(
                f"kl_estimator='k1' cannot be {self.title}'s loss term: its gradient is zero on "
                "average; use 'k2' or 'k3'"
            )

    def needs_old_logprob(self, config: C_contra) -> bool:  # noqa: ARG002 - subclasses read it
        """Return whether credit assignment needs the sampling policy's log probabilities."""
        return False

    @abstractmethod
    def credit(self, config: C_contra, samples: Samples) -> Credited:
        """Return the samples with an advantage for every token."""

    @abstractmethod
    def objective(self, config: C_contra) -> Objective:
        """Return the loss that an update minimises."""

    def opening(self) -> Sequence[str]:
        """Return notes to show the user at the start of a run."""
        return ()

    @abstractmethod
    def verl_overrides(self, config: C_contra) -> dict[str, object]:
        """Return the keys of verl's configuration that make it run this algorithm.

        Raises:
            ConfigError: verl cannot run it with these settings.
        """

    def verl_notes(self) -> Sequence[str]:
        """Return notes on how this algorithm differs in verl."""
        return ()

    @abstractmethod
    def is_flat(self, metrics: Mapping[str, float]) -> bool:
        """Return whether a step's metrics on verl show that all compared rewards were equal."""


def loss_settings(config: RewardConfig) -> dict[str, Any]:
    """Return the arguments of `PolicyObjective` that every algorithm takes from the config."""
    # The assertion documents an order: `objective_of` has replaced "episode" by "token" before.
    assert config.loss_aggregation != "episode", "verl/episodes.py puts it into the advantages"
    return {
        "clip_range": config.clip_range,
        "clip_range_high": config.clip_range_high,
        "aggregation": config.loss_aggregation,
        "max_length": config.max_response_length,
        "kl_coef": config.kl_coef,
        "kl_estimator": config.kl_estimator or "k3",
        "ent_coef": config.ent_coef,
    }


def kl_in_the_loss(config: RewardConfig) -> dict[str, object]:
    """Return verl's keys for a KL that is a term of the loss."""
    made: dict[str, object] = {
        "algorithm.use_kl_in_reward": False,
        f"{ACTOR}.use_kl_loss": config.kl_coef > 0,
    }
    if config.kl_coef:
        made[f"{ACTOR}.kl_loss_coef"] = config.kl_coef
        made[f"{ACTOR}.kl_loss_type"] = KL_NAMES[config.kl_estimator or "k3"]
    return made
