"""The engine on a real pretrained model, where it is at hand: the numbers of both arithmetics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orbiter.train.engine.arithmetic import packing_works
from orbiter.train.engine.batch import collate
from orbiter.train.engine.models.download import cache_folder
from orbiter.train.engine.models.load import LoadedModel, load_model
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.sample import sample
from orbiter.train.engine.update import logprob

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(cache_folder().glob("smollm2-135m-*/model.safetensors")),
        reason="the small model is not in the cache",
    ),
]
QUESTIONS = ["Tell me about Paris.", "Write a short poem about the sea.", "What is 2+3?"]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("smollm2-135m", device="cpu")


def drawn(loaded: LoadedModel, dtype: str) -> tuple[Policy, Tensor, Tensor, Tensor]:
    """A policy, the recorded log probabilities [N], the update's, and the update's in float32."""
    policy = make_policy(loaded.model, loaded.tokenizer, dtype=dtype, device="cpu")
    ask = loaded.tokenizer.apply_chat_template
    prompts = [
        ask([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False)
        for q in QUESTIONS
    ]
    batch = collate(sample(policy, prompts, n=2, max_new_tokens=40, seed=1))
    full = make_policy(loaded.model, loaded.tokenizer, device="cpu", path="generic")
    streams = batch.sampled_logprob, logprob(policy, batch), logprob(full, batch)
    recorded, again, exact = (stream[batch.mask] for stream in streams)
    return policy, recorded, again, exact


def test_in_float32_sampling_update_and_hugging_face_agree(loaded: LoadedModel) -> None:
    policy, recorded, again, exact = drawn(loaded, "float32")
    assert policy.path == "fast"
    assert float((recorded - again).abs().max()) < 1e-4
    assert float((again - exact).abs().max()) < 1e-4


@pytest.mark.skipif(
    not packing_works(torch.bfloat16),
    reason="bfloat16 is emulated on this processor, with other rounding; auto takes float32",
)
def test_in_bfloat16_they_lie_within_its_own_noise(loaded: LoadedModel) -> None:
    _, recorded, again, exact = drawn(loaded, "bfloat16")
    assert float((recorded - again).abs().mean()) <= 0.06
    assert float((again - exact).abs().mean()) <= 0.06


def test_the_end_of_turn_is_the_pad_token_and_is_trained_on_all_the_same(
    loaded: LoadedModel,
) -> None:
    tokenizer = loaded.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    policy = make_policy(loaded.model, tokenizer, device="cpu")
    rollouts = sample(policy, [tokenizer("Say yes.")["input_ids"]], n=4, max_new_tokens=60, seed=0)
    batch = collate(rollouts)
    ended = [i for i, rollout in enumerate(rollouts) if rollout.finish_reason == "stop"]
    for row in ended:
        last = int(batch.length[row]) - 1
        assert bool(batch.mask[row, last])
        assert int(batch.token_ids[row, last]) in policy.stop_token_ids
    assert torch.equal(batch.mask.sum(dim=-1), batch.length - batch.prompt_length)
