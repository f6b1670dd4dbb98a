"""On-policy distillation: the policy learns from its own samples what a teacher would have said.

Agarwal et al. 2023 (GKD), https://arxiv.org/abs/2306.13649: the divergence over the whole
vocabulary, with a teacher in this process. With sampled tokens only, the reverse KL becomes an
advantage of each token (Lu et al. 2025, https://thinkingmachines.ai/blog/on-policy-distillation/),
which a teacher behind an endpoint can serve. A reward may be added, compared within groups as in
GRPO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orbiter.train.checks import Number, OneOf, OrNone, Text, WholeNumber, setting
from orbiter.train.errors import ConfigError
from orbiter.train.trainer.config import NotInVerl, VerlKeys
from orbiter.train.verl.algorithms.base import Credited, Samples, loss_settings
from orbiter.train.verl.algorithms.cispo import refuse_sequence_ratio
from orbiter.train.verl.algorithms.grpo import Grpo, GrpoConfig, spread

if TYPE_CHECKING:
    from orbiter.train.engine.update import Objective

LOSS = "distillation.distillation_loss"
"""The part of verl's configuration that holds the loss of distillation."""
TEACHER = "distillation.teacher_models.teacher_model"
"""The part of verl's configuration that holds its only teacher."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(GrpoConfig):
    """The settings of distillation."""

    __slots__ = ()

    teacher: str | None = setting(
        None,
        "With algorithm='distill': the model to learn from, named like model=; with teacher_url "
        "its name there. It must have the tokenizer of model=.",
        OrNone(Text("a model: a folder, a hub name or a name at teacher_url")),
        path="model",
        verl=VerlKeys((f"{TEACHER}.model_path",), written=False),
    )
    teacher_url: str | None = setting(
        None,
        "Address of an OpenAI-compatible endpoint that gives log probabilities of a prompt's "
        "tokens (vLLM), usually ending in /v1; its key is OPENAI_API_KEY. None: the teacher runs "
        "in this process.",
        OrNone(Text("the address of an API")),
        verl=NotInVerl("verl starts servers for the teacher itself; give its folder as teacher"),
    )
    distill_over: Literal["auto", "vocabulary", "sampled"] = setting(
        "auto",
        "Compare whole distributions, or only the log probabilities of the sampled tokens; auto "
        "compares distributions with a teacher in this process.",
        OneOf(("auto", "vocabulary", "sampled")),
        verl=VerlKeys((f"{LOSS}.loss_mode", f"{LOSS}.use_policy_gradient"), written=False),
    )
    distill_beta: float = setting(
        1.0,
        "Divergence: 0 is the forward KL, 1 the reverse KL, between them Jensen-Shannon.",
        Number(at_least=0, at_most=1),
        verl=NotInVerl("its forms are the reverse KL, and a forward KL over the likeliest tokens"),
    )
    distill_coef: float = setting(
        1.0,
        "Weight of the divergence beside the loss of the rewards.",
        Number(above=0),
        verl=VerlKeys((f"{LOSS}.distillation_loss_coef",), written=False),
    )
    distill_lambda: float = setting(
        1.0,
        "Share of the prompts that the policy answers itself; for the others the data's own "
        "action is the answer to learn on.",
        Number(at_least=0, at_most=1),
        verl=NotInVerl("verl learns on its own samples only"),
    )
    teacher_gpus: int = setting(
        1,
        "With backend='verl': GPUs for the teacher, which holds one copy of it, beside those of "
        "the policy.",
        WholeNumber(at_least=1),
        verl=VerlKeys(("distillation.n_gpus_per_node",), written=False),
    )

    @property
    def distills_sampled(self) -> bool:
        """Whether only the log probabilities of the sampled tokens are compared."""
        if self.distill_over == "auto":
            return self.teacher_url is not None
        return self.distill_over == "sampled"


class Distill(Grpo):
    """Pulls the policy towards a teacher on the policy's own samples."""

    title = "distillation"
    summary = "The policy learns a teacher's distribution on its own samples."
    least_group = 1
    needs_reward = False

    def check(self, config: GrpoConfig) -> None:
        """Refuse settings that do not go together, or need what the teacher does not give."""
        super().check(config)
        refuse_sequence_ratio(self.title, config)
        own = distill_settings(config)
        if own.teacher is None:
            raise ConfigError(
                "algorithm='distill' needs teacher=, a model with the tokenizer of model=, or its "
                "name at teacher_url="
            )
        if own.teacher_url is not None:
            _check_endpoint(own)
        if not own.distills_sampled:
            return
        if own.distill_beta != 1:
            raise ConfigError(
                f"distill_beta={own.distill_beta:g} needs whole distributions: the sampled tokens "
                "estimate the reverse KL only; use distill_beta=1, or distill_over='vocabulary' "
                "with a teacher in this process"
            )
        if own.distill_lambda != 1:
            raise ConfigError(
                f"distill_lambda={own.distill_lambda:g} needs whole distributions: an answer that "
                "the policy did not sample estimates no reverse KL; use distill_lambda=1, or "
                "distill_over='vocabulary' with a teacher in this process"
            )

    def credit(self, config: GrpoConfig, samples: Samples) -> Credited:
        """Give every token the advantage of the rewards, as GRPO does; the teacher comes later.

        Samples with equal rewards have advantages of zero, but the teacher still teaches.
        """
        if config.group_size < 2:  # nothing to compare, so that rewards are measured only
            credited = spread(samples, samples.reward.new_zeros(samples.reward.shape))
        else:
            credited = super().credit(config, samples)
        return credited._replace(flat=False)

    def objective(self, config: GrpoConfig) -> Objective:
        """Return the divergence from the teacher, with GRPO's loss of the rewards."""
        from orbiter.train.engine.distillation import DistillObjective
        from orbiter.train.engine.objective import PolicyObjective

        own = distill_settings(config)
        return DistillObjective(
            reward=PolicyObjective(**loss_settings(config)),
            coef=own.distill_coef,
            beta=own.distill_beta,
            sampled=own.distills_sampled,
        )

    def opening(self) -> Sequence[str]:
        """Name the metric to watch."""
        return ("watch divergence, the mean distance from the teacher in nats per token",)

    def verl_overrides(self, config: GrpoConfig) -> dict[str, object]:
        """Return verl's distillation by the reverse KL of sampled tokens, beside its GRPO."""
        own = distill_settings(config)
        if not own.distills_sampled:
            raise ConfigError(
                f"distill_over={own.distill_over!r} has no counterpart in verl 0.9.1, which "
                "compares sampled tokens, or the teacher's likeliest tokens by the forward KL; use "
                "distill_over='sampled'"
            )
        if own.device == "cpu":
            raise ConfigError(
                "a rehearsal with device='cpu' has no servers for a teacher; verl's distillation "
                "needs GPUs"
            )
        high = config.clip_range if config.clip_range_high is None else config.clip_range_high
        return {
            **super().verl_overrides(config),
            "distillation.enabled": True,
            "distillation.nnodes": 1,
            "distillation.n_gpus_per_node": own.teacher_gpus,
            f"{TEACHER}.model_path": own.teacher,
            f"{TEACHER}.inference.tensor_model_parallel_size": own.teacher_gpus,
            # k1 as a reward: the difference of the log probabilities of each sampled token.
            f"{LOSS}.loss_mode": "k1",
            f"{LOSS}.use_policy_gradient": True,
            f"{LOSS}.use_task_rewards": True,
            f"{LOSS}.distillation_loss_coef": own.distill_coef,
            f"{LOSS}.clip_ratio": config.clip_range,
            f"{LOSS}.clip_ratio_low": config.clip_range,
            f"{LOSS}.clip_ratio_high": high,
        }

    def verl_notes(self) -> Sequence[str]:
        """Explain how the losses of rewards and teacher are combined."""
        return ("verl clips the losses of rewards and teacher apart; here their sum is clipped",)

    def is_flat(self, metrics: Mapping[str, float]) -> bool:  # noqa: ARG002 - the base's interface
        """Return False: the teacher teaches also where all rewards are equal."""
        return False


def distill_settings(config: GrpoConfig) -> DistillConfig:
    """Return the config with the settings of distillation, which every full config has."""
    assert isinstance(config, DistillConfig)
    return config


def _check_endpoint(config: DistillConfig) -> None:
    """Refuse settings that need a teacher in this process."""
    from orbiter.train.llm.config import ClientConfig

    try:
        ClientConfig(model=str(config.teacher), base_url=config.teacher_url)
    except ConfigError as error:
        raise ConfigError(f"teacher_url: {error}") from error
    if config.distill_over == "vocabulary":
        raise ConfigError(
            "distill_over='vocabulary' needs a teacher in this process: an endpoint gives log "
            "probabilities of single tokens; use 'sampled', or leave teacher_url out"
        )
    if config.temperature != 1:
        raise ConfigError(
            f"temperature={config.temperature:g}: an endpoint gives its log probabilities at "
            "temperature 1, and comparing them with another temperature is no divergence; use "
            "temperature=1"
        )
