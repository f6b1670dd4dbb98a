"""Distillation maps to verl's own, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.verl import VeRLConfig, VeRLTrainer
from orbiter.train.verl.cluster.overrides import make_overrides
from tests.agents.playing import branching
from tests.verl.test_cluster_config import layout
from tests.verl.test_distillation import PROBE, SMALL


def config(**settings: object) -> VeRLConfig:
    return VeRLConfig(**(SMALL | {"teacher": "/t"} | settings))


VERL_KEYS = {
    *("enabled", "nnodes", "n_gpus_per_node", "teacher_models.teacher_model.model_path"),
    "teacher_models.teacher_model.inference.tensor_model_parallel_size",
    *(
        f"distillation_loss.{name}"
        for name in (
            *("loss_mode", "topk", "use_task_rewards", "distillation_loss_coef", "loss_max_clamp"),
            *("use_policy_gradient", "clip_ratio", "clip_ratio_low", "clip_ratio_high"),
        )
    ),
}
"""Keys of verl/trainer/config/distillation/distillation.yaml in verl 0.9.1."""


def test_on_verl_it_is_verls_distillation_by_sampled_tokens() -> None:
    made = config( distill_over="sampled", distill_coef=0.5, backend="verl", device="auto",
        output_dir="run", teacher_gpus=2, minibatch_size=0,
    )  # fmt: skip
    written = make_overrides(made, layout())
    loss = "distillation.distillation_loss"
    assert written["distillation.enabled"] is True
    assert written["distillation.teacher_models.teacher_model.model_path"] == "/t"
    assert written["distillation.n_gpus_per_node"] == 2
    assert written[f"{loss}.loss_mode"] == "k1"
    assert written[f"{loss}.use_policy_gradient"] is True
    assert written[f"{loss}.distillation_loss_coef"] == 0.5
    ours = {key.removeprefix("distillation.") for key in written if key.startswith("distill")}
    assert ours <= VERL_KEYS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "distill_over='auto' has no counterpart in verl"),
        ({"distill_over": "sampled", "device": "cpu"}, "a rehearsal with device='cpu'"),
        ({"distill_beta": 0.5}, "distill_beta=0.5 has no counterpart in verl"),
        ({"distill_lambda": 0.5}, "distill_lambda=0.5 has no counterpart in verl"),
        ({"teacher_url": "http://h/v1"}, "teacher_url='http://h/v1' has no counterpart in verl"),
    ],
    ids=str,
)
def test_what_verl_does_not_have_is_refused_by_name(settings: dict[str, Any], words: str) -> None:
    base = SMALL | {"teacher": "tiny", "backend": "verl", "device": "auto", "output_dir": "run"}
    with pytest.raises(ConfigError, match=words):
        VeRLConfig(**(base | settings))


async def test_on_verl_an_agent_is_refused() -> None:
    made = config(distill_over="sampled", backend="verl", device="auto", output_dir="run")
    with pytest.raises(ConfigError, match="with agent= needs backend='local'"):
        await VeRLTrainer(made, PROBE, agent=branching).validate()
