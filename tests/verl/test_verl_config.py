import math

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.trainer import TrainConfig
from orbiter.train.verl import VeRLAlgorithm, VeRLConfig


def test_the_guides_config_works_as_written() -> None:
    config = VeRLConfig(
        algorithm=VeRLAlgorithm.PPO,
        epochs=3,
        batch_size=16,
        learning_rate=1e-5,
        kl_coef=0.1,
        clip_range=0.2,
    )
    assert config.algorithm == "ppo"
    assert isinstance(config, TrainConfig)


def test_the_algorithms_are_named_as_in_the_guide() -> None:
    named = {a.name: a.value for a in VeRLAlgorithm}
    assert named.items() >= {"PPO": "ppo", "GRPO": "grpo"}.items()


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_an_algorithm_may_be_given_as_text(name: str) -> None:
    config = VeRLConfig(algorithm=name)  # type: ignore[arg-type] # text is what a user types
    assert config.algorithm is VeRLAlgorithm(name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "gpro"}, "did you mean 'grpo'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"clip_range": 1.0}, "clip_range"),
        ({"clip_range": 0.0}, "clip_range"),
        ({"clip_range_high": 0.0}, "clip_range_high must be above 0"),
        ({"kl_coef": -0.1}, "kl_coef must be at least 0"),
        ({"gamma": 1.5}, "gamma must be at most 1"),
        ({"gae_lambda": -0.1}, "gae_lambda must be at least 0"),
        ({"ent_coef": "0.1"}, "ent_coef must be a finite number, got '0.1'"),
        ({"ppo_epochs": 0}, "ppo_epochs must be at least 1"),
        ({"minibatch_size": -1}, "minibatch_size must be at least 0"),
        ({"target_kl": 0}, "target_kl must be above 0"),
        ({"lora_rank": 1.5}, "lora_rank must be a whole number"),
        ({"dtype": "float16"}, "dtype must be one of 'auto', 'float32', 'bfloat16'"),
        ({"model": ""}, "model must name a model"),
        ({"on_long_prompt": "cut"}, "on_long_prompt must be one of"),
        ({"loss_aggregation": "mean"}, "loss_aggregation must be one of"),
        ({"on_reward_error": "ignore"}, "on_reward_error must be 'raise', 'skip' or a number"),
        ({"on_reward_error": math.inf}, "on_reward_error must be a finite number"),
        ({"resume": "yes"}, "resume must be True or False"),
        ({"resume": True}, "resume needs output_dir="),
        ({"save_every": 5}, "save_every needs output_dir="),
        ({"max_prompt_length": 0}, "max_prompt_length must be at least 1"),
        ({"max_seconds": 0}, "max_seconds must be above 0"),
        ({"reward_timeout_seconds": 0}, "reward_timeout_seconds must be above 0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name_and_value(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        VeRLConfig(**settings)  # type: ignore[arg-type] # that is the point


def test_grpo_needs_somebody_to_compare_with_and_ppo_does_not() -> None:
    with pytest.raises(ConfigError, match=r"group_size=1: GRPO .* needs at least 2"):
        VeRLConfig(group_size=1)
    assert VeRLConfig(algorithm=VeRLAlgorithm.PPO, group_size=1).group_size == 1


def test_batch_arithmetic_is_explained_with_sizes_that_work() -> None:
    with pytest.raises(ConfigError) as refused:
        VeRLConfig(batch_size=6, group_size=8, minibatch_size=20)
    said = str(refused.value)
    assert "batch_size=6 prompts x group_size=8 = 48 samples" in said
    assert "minibatch_size=20 does not divide; use 16 or 24" in said
    for size in (16, 24, 0):
        assert VeRLConfig(batch_size=6, group_size=8, minibatch_size=size)


def test_a_minibatch_larger_than_the_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="use 8 or 16"):
        VeRLConfig(batch_size=2, group_size=8, minibatch_size=32)
