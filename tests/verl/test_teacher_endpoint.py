"""A teacher behind an endpoint gives log probabilities of sampled tokens, or is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orbiter.train.errors import ConfigError
from orbiter.train.llm import ChatError, ClientConfig
from orbiter.train.llm.prompt_logprobs import PromptScorer
from orbiter.train.verl import VeRLConfig, VeRLTrainer
from tests.agents.playing import branching
from tests.verl.teachers import Endpoint, save, serving, wider_model

PROMPTS = ["Say something.", "Sing."]
SMALL: dict[str, Any] = {
    "algorithm": "distill",
    "model": "tiny",
    "device": "cpu",
    "dtype": "float32",
    "epochs": 2,
    "batch_size": 2,
    "group_size": 3,
    "max_response_length": 5,
    "learning_rate": 2e-3,
    "progress": False,
}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(Endpoint(wider_model())) as server:
        yield server


def remote(endpoint: Endpoint, **settings: object) -> VeRLTrainer:
    made = SMALL | {"teacher": "big", "teacher_url": endpoint.url} | settings
    return VeRLTrainer(VeRLConfig(**made))


async def weights(trainer: VeRLTrainer) -> torch.Tensor:
    named = (await trainer.policy()).named_trainable()
    return torch.cat([parameter.detach().flatten().clone() for parameter in named.values()])


@pytest.mark.parametrize("agent", [None, branching])
@pytest.mark.parametrize("form", ["prompt_logprobs", "echo"])
async def test_a_run_is_that_with_the_same_teacher_in_this_process(
    endpoint: Endpoint, tmp_path: Path, form: str, agent: object
) -> None:
    endpoint.form = form
    far = remote(endpoint, eval_every=None)
    far.agent = agent
    await far.train(PROMPTS)
    local = SMALL | {"teacher": str(save(wider_model(), tmp_path)), "distill_over": "sampled"}
    near = VeRLTrainer(VeRLConfig(**local), agent=agent)
    await near.train(PROMPTS)
    start = await weights(VeRLTrainer(VeRLConfig(**local)))
    there, here = await weights(far), await weights(near)
    # AdamW makes a full step of a gradient that is rounding only, so the whole move is compared.
    assert float((there - here).norm()) < 1e-2 * float((here - start).norm())
    for one, other in zip(far.history, near.history, strict=True):
        assert one["divergence"] == pytest.approx(other["divergence"], rel=1e-4, abs=1e-5)


async def test_every_distinct_row_is_asked_once_and_sends_token_ids(endpoint: Endpoint) -> None:
    trainer = remote(endpoint, epochs=1)
    await trainer.train(PROMPTS)
    asked = [tuple(body["prompt"]) for body in endpoint.bodies]
    # The probe first finds out the form, and then is read.
    assert asked[0] == asked[1]
    assert len(set(asked[1:])) == len(asked[1:]) <= 1 + 6
    assert all(body["model"] == "big" for body in endpoint.bodies)
    assert all(body["prompt_logprobs"] == 1 for body in endpoint.bodies)


async def test_held_out_divergence_is_measured_through_the_endpoint(endpoint: Endpoint) -> None:
    trainer = remote(endpoint)
    metrics = await trainer.evaluate(PROMPTS * 8)
    assert metrics.reward is None
    assert 0 < metrics.extra["divergence"] < 5


async def test_an_endpoint_without_logprobs_is_refused_before_the_run_begins(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    for form, words in (("none", "unknown parameter"), ("text only", "the response holds none")):
        endpoint.form = form
        with pytest.raises(ConfigError, match=f"does not give log probabilities of a .*{words}"):
            await remote(endpoint, output_dir=tmp_path / form).train(PROMPTS)
        assert not (tmp_path / form).exists()


async def test_an_endpoint_of_another_vocabulary_is_refused_before_the_run_begins(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.shift = 1
    with pytest.raises(
        ConfigError, match=r"'big' at http.* has another tokenizer than model='tiny'"
    ):
        await remote(endpoint, output_dir=tmp_path / "run").train(PROMPTS)
    assert not (tmp_path / "run").exists()


async def test_an_endpoint_that_is_not_there_is_an_error_that_names_it() -> None:
    config = ClientConfig(model="big", base_url="http://127.0.0.1:9/v1", attempts=1)
    with pytest.raises(ChatError, match=r"big: the connection failed"):
        await PromptScorer(config).logprobs([1, 2, 3])


async def test_a_busy_endpoint_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.fail = [503, 429, 500]
    scorer = PromptScorer(ClientConfig(model="big", base_url=endpoint.url))
    answers = await scorer.logprobs([72, 105, 33])
    await scorer.close()
    with torch.no_grad():
        logits = endpoint.model(torch.tensor([[72, 105, 33]])).logits[0].log_softmax(-1)
    assert answers == pytest.approx([float(logits[0, 105]), float(logits[1, 33])], abs=1e-5)


@pytest.mark.parametrize("logprob", [None, "x", True, 0.5, float("inf")])
async def test_a_number_that_is_no_log_probability_is_not_taken(
    endpoint: Endpoint, logprob: object
) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = [None, *({str(i): {"logprob": logprob}} for i in body["prompt"][1:])]
        return 200, {"choices": [{"prompt_logprobs": known}]}

    endpoint.answer = answer  # type: ignore[method-assign]
    with pytest.raises((ConfigError, ChatError), match=r"log probabilities|not JSON"):
        await PromptScorer(ClientConfig(model="big", base_url=endpoint.url, attempts=1)).logprobs(
            [1, 2, 3]
        )
