"""The teacher of a distillation: loading it, asking it, and answers of the data to learn on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.distillation import measure_divergence, teacher_logprob
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.models.teacher import (
    TeacherNames,
    naming_teacher,
    require_context,
    require_same_tokenizer,
)
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.rollout import Rollout, given
from orbiter.train.engine.tasks import Tasks
from orbiter.train.engine.thread import work
from orbiter.train.engine.turn_end import render_action
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.llm import ClientConfig
from orbiter.train.llm.prompt_logprobs import PromptScorer
from orbiter.train.rl.kl import kl_k1
from orbiter.train.rl.masked import masked_mean
from orbiter.train.seeding import sub_random
from orbiter.train.trainer import TrainMetrics
from orbiter.train.verl.algorithms.base import Credited
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.evaluate import judge
from orbiter.train.verl.reward import SampleScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Teach = Callable[[Batch], Awaitable[Tensor]]
"""Returns the teacher's log probability of every trained token of a batch, [B T]."""

PROBE = 'The quick brown fox jumps over 13 lazy dogs: {"a": [1, 2]}.'
"""A text whose tokens the endpoint must read as the policy does."""


# Loading a teacher into this process.


def load_teacher(config: VeRLConfig, policy: Policy) -> Policy | None:
    """Load the frozen teacher of a run; None if it has none in this process.

    Raises:
        ConfigError: its tokenizer is not the policy's, or its context is shorter.
        StorageError: there is no such model.
    """
    if config.teacher is None or config.teacher_url is not None:
        return None
    names = TeacherNames(config.teacher, config.model)
    with naming_teacher(config.teacher):
        loaded = load_model(
            config.teacher,
            device=str(policy.device),
            trust_remote_code=config.trust_remote_code,
        )
    require_same_tokenizer(names, policy.tokenizer, loaded.tokenizer)
    teacher = make_policy(
        loaded.model, loaded.tokenizer, dtype=policy.dtype, device=str(policy.device)
    )
    # Frozen: without it autograd would keep the teacher's activations.
    teacher.model.requires_grad_(False)
    longest = policy.context_length
    if config.max_prompt_length is not None:
        # What is actually read may be far shorter than the policy's context.
        longest = min(longest, config.max_prompt_length + config.max_response_length)
    require_context(names, longest, teacher.context_length)
    return teacher


# Asking a teacher for the log probabilities of sampled tokens.


@asynccontextmanager
async def teaching(config: VeRLConfig, policy: Policy) -> AsyncIterator[Teach | None]:
    """Open the teacher that gives log probabilities of sampled tokens; None if that is not asked.

    Raises:
        ConfigError: the endpoint does not give them, or reads tokens differently.
        ChatError: the endpoint does not answer.
    """
    if config.algorithm != "distill" or not config.distills_sampled:
        yield None
        return
    if config.teacher_url is None:
        # On the engine's thread, the only one that touches tensors.
        yield lambda batch: work(
            teacher_logprob,
            policy,
            batch,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        return
    assert config.teacher is not None
    scorer = PromptScorer(
        ClientConfig(model=config.teacher, base_url=config.teacher_url),
        api_key=os.environ.get("OPENAI_API_KEY"),
    )
    try:
        await _require_same_tokens(config, policy.tokenizer, scorer)
        yield lambda batch: _ask(scorer, batch)
    finally:
        await scorer.close()


async def with_teacher(teach: Teach | None, credited: Credited) -> Credited:
    """Return the samples of a step with the teacher's log probabilities, if they are asked for."""
    batch = credited.batch
    if teach is None or batch is None:
        return credited
    return credited._replace(batch=replace(batch, teacher_logprob=await teach(batch)))


async def _ask(scorer: PromptScorer, batch: Batch) -> Float[Tensor, "B T"]:
    """Ask for each distinct row of a batch once."""
    # The batch may be on an accelerator, so the engine's thread reads it.
    token_ids, lengths = await work(lambda: (batch.token_ids.tolist(), batch.length.tolist()))
    rows = [tuple(row[:length]) for row, length in zip(token_ids, lengths, strict=True)]
    # Samples of a group are often equal, and each row costs a request.
    distinct = list(dict.fromkeys(rows))
    async with asyncio.TaskGroup() as group:
        tasks = {row: group.create_task(scorer.logprobs(row)) for row in distinct}
    longest = batch.token_ids.shape[1]
    # Nothing precedes the first token, so that its log probability is unknown; it is never trained.
    padded = [[0.0, *(of := tasks[row].result()), *[0.0] * (longest - 1 - len(of))] for row in rows]

    def placed() -> Tensor:
        known = torch.tensor(padded, dtype=torch.float32, device=batch.mask.device)
        return known.masked_fill(~batch.mask, 0.0)

    return await work(placed)


async def _require_same_tokens(
    config: VeRLConfig, tokenizer: PreTrainedTokenizerBase, scorer: PromptScorer
) -> None:
    """Make sure that the endpoint reads token ids as the policy's tokenizer does.

    Raises:
        ConfigError: it reads another text, or has no token of such a number.
    """
    token_ids: list[int] = tokenizer(PROBE, add_special_tokens=False).input_ids
    known = await scorer.known(token_ids)
    decode: Any = tokenizer.decode
    # Servers write the bytes of an incomplete character in different ways, so only whole
    # characters are compared, and a leading space, which some tokenizers drop, is not.
    pairs = [(decode([t]).strip(), k.text) for t, k in zip(token_ids[1:], known, strict=True)]
    odd = [(ours, theirs) for ours, theirs in pairs if _differ(ours, theirs)]
    if odd:
        ours, theirs = odd[0]
        raise ConfigError(
            f"teacher={config.teacher!r} at {config.teacher_url} has another tokenizer than model="
            f"{config.model!r}: it reads {theirs!r} where the policy wrote {ours!r} ({len(odd)} of "
            f"{len(pairs)} tokens of a probe differ). Distillation compares the two token by "
            "token, so serve a model of the same family"
        )


def _differ(ours: str, theirs: str | None) -> bool:
    # A server without texts, or half a character: nothing to compare.
    if theirs is None or "\N{REPLACEMENT CHARACTER}" in ours + theirs:
        return False
    # Byte-level vocabularies write a space as a letter.
    return ours != theirs.replace("\u0120", " ").replace("\u2581", " ").strip()


# Answers of the data.


def target_answers(
    config: VeRLConfig, tokenizer: PreTrainedTokenizerBase, tasks: Tasks
) -> list[list[int]] | None:
    """Return the data's answers as token ids; None if the policy answers every prompt itself.

    Raises:
        DataError: an item has no answer, or it is longer than max_response_length.
    """
    if config.algorithm != "distill" or config.distill_lambda == 1:
        return None
    answers: list[list[int]] = []
    for number, item in enumerate(tasks.items):
        if not item.action:
            raise DataError(
                f"distill_lambda={config.distill_lambda:g} also learns on the data's answers, and "
                f"item {number} has no action (state {item.state[:60]!r}); use distill_lambda=1"
            )
        answer = render_action(tokenizer, item)
        if len(answer) > config.max_response_length:
            raise DataError(
                f"the answer of item {number} has {len(answer)} tokens, more than "
                f"max_response_length={config.max_response_length} (state {item.state[:60]!r})"
            )
        answers.append(answer)
    return answers


def own_answers(config: VeRLConfig, step: int, places: Sequence[int]) -> list[bool]:
    """Return for each task of a step whether the policy answers it itself."""
    # GKD's algorithm 1 draws once for a whole batch; here each task draws, so that a step has both
    # kinds. From the number of the step, so that a resumed run draws the same.
    draw = sub_random(config.seed, "distill", step)
    return [draw.random() < config.distill_lambda for _ in places]


def with_answers(
    scores: SampleScores,
    rollouts: Sequence[Rollout],
    answers: Sequence[tuple[list[int], list[int]]],
) -> tuple[list[Rollout], SampleScores]:
    """Add prompts with their given answers to the samples of a step.

    The reward of the copies of an answer is the same, so that their advantage is zero.
    """
    # GKD's off-policy part; nobody sampled these, so they have no log probabilities of a sampler.
    rows = [given(prompt, answer) for prompt, answer in answers]
    total = [*scores.total, *[0.0] * len(rows)]
    return [*rollouts, *rows], scores._replace(total=total)


def without_reward(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out what says something about rewards only: a run by a teacher may have none."""
    # Beginnings of names: "reward" covers reward/<name>, reward_std and the interval.
    about = ("reward", "pass@", "flat_groups")
    return {name: value for name, value in metrics.items() if not name.startswith(about)}


# Held-out prompts.


async def with_divergence(
    config: VeRLConfig, policy: Policy, teach: Teach | None, tasks: Tasks, metrics: TrainMetrics
) -> TrainMetrics:
    """Add the divergence on held-out prompts to their metrics, if the run has a teacher here."""
    if policy.teacher is None and teach is None:
        return metrics
    divergence = await _held_out_divergence(config, policy, teach, tasks)
    extra = {**metrics.extra, "divergence": divergence}
    if any(name.startswith("reward/") for name in extra):
        return replace(metrics, extra=extra)
    # Without rewards the mean reward is no measurement.
    return replace(metrics, reward=None, reward_interval=None, extra=without_reward(extra))


async def _held_out_divergence(
    config: VeRLConfig, policy: Policy, teach: Teach | None, tasks: Tasks
) -> float:
    """Return the divergence on the policy's own answers to held-out prompts, in nats per token.

    With sampled tokens only it is an estimate, which may be a little below 0.
    """
    sampled = await judge(policy, config, (), tasks, samples=1)
    batch = await work(collate, sampled.rollouts, device=policy.device)
    if teach is None:
        return await work(
            measure_divergence,
            policy,
            batch,
            temperature=config.temperature,
            beta=config.distill_beta,
            micro_batch_tokens=config.micro_batch_tokens,
        )
    known = await teach(batch)
    return await work(
        lambda: float(masked_mean(kl_k1(batch.sampled_logprob, known, batch.mask), batch.mask))
    )
