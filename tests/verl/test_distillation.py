"""A policy learns from a teacher on its own samples: exact gradients, clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train.engine import memory
from orbiter.train.engine.batch import Batch, collate
from orbiter.train.engine.distillation import measure_divergence, teacher_logprob
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import Policy, make_policy
from orbiter.train.engine.sample import sample
from orbiter.train.engine.thread import work
from orbiter.train.engine.update import Part, update
from orbiter.train.errors import ConfigError, DataError, StorageError, TrainError, TrainingError
from orbiter.train.serve.live import LivePolicy
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.episodes import credit_episodes
from orbiter.train.verl.play import PlaySetting, play
from orbiter.train.verl.tasks import as_tasks
from tests.agents.playing import branching, spread
from tests.verl.teachers import save, wider_model

SMALL: dict[str, Any] = {
    "algorithm": "distill",
    "model": "tiny",
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 2,
    "group_size": 3,
    "max_response_length": 6,
    "learning_rate": 1e-3,
    "progress": False,
}
PROBE = [RewardSpec("probe", fn=spread)]
PROMPTS = ["Say something.", "Sing."]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(wider_model(), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def policy(folder: Path) -> Policy:
    """A tiny policy with a wider teacher."""
    made = [
        make_policy(loaded.model, loaded.tokenizer, device="cpu")
        for loaded in (load_model(name, device="cpu") for name in ("tiny", folder))
    ]
    made[0].teacher = made[1]
    return made[0]


def config(folder: Path, **settings: object) -> VeRLConfig:
    return VeRLConfig(**(SMALL | {"teacher": str(folder)} | settings))


async def drawn(policy: Policy, temperature: float) -> Batch:
    """Sample two groups, and give their rows different advantages."""
    prompts = [policy.tokenizer(prompt).input_ids for prompt in PROMPTS]
    rollouts = await work(
        sample, policy, prompts, n=3, max_new_tokens=6, temperature=temperature, seed=3
    )
    return collate(rollouts, advantage=torch.linspace(-1, 1, 6))


def full_distribution(of: Policy, batch: Batch, temperature: float) -> Tensor:
    """Log softmax before every token, through Hugging Face's plain forward, a row at a time."""
    rows = []
    for ids, length in zip(batch.token_ids, batch.length.tolist(), strict=True):
        logits = of.model(ids[None, :length], use_cache=False).logits[0].float() / temperature
        padded = torch.zeros(len(ids), logits.shape[-1])
        padded[1:length] = logits[:-1].log_softmax(-1)
        rows.append(padded)
    return torch.stack(rows)


def divergence_by_hand(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """The formula in probabilities, written out again."""
    p, q = p.exp(), q.exp()
    if beta in (0.0, 1.0):
        a, b = (p, q) if beta else (q, p)
        return (a * (a / b).log()).sum(-1)
    m = beta * q + (1 - beta) * p
    return beta * (q * (q / m).log()).sum(-1) + (1 - beta) * (p * (p / m).log()).sum(-1)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"distill_beta": 0.0},
    {"distill_beta": 0.3, "distill_coef": 2.5, "temperature": 0.7},
    {"distill_over": "sampled", "distill_coef": 0.5},
    {"loss_aggregation": "sequence", "distill_beta": 0.5},
    {"loss_aggregation": "constant", "distill_over": "sampled"},
]


def loss_by_hand(policy: Policy, batch: Batch, settings: VeRLConfig) -> Tensor:
    assert policy.teacher is not None
    assert batch.advantage is not None
    p = full_distribution(policy, batch, settings.temperature)
    with torch.no_grad():
        q = full_distribution(policy.teacher, batch, settings.temperature)
    token = batch.token_ids[..., None]
    logprob, taught = p.gather(2, token)[..., 0], q.gather(2, token)[..., 0]
    advantage, mask = batch.advantage, batch.mask
    if settings.distills_sampled:
        advantage = advantage + settings.distill_coef * (taught - logprob.detach())
        each = torch.zeros(())
    else:
        each = settings.distill_coef * divergence_by_hand(p, q, settings.distill_beta)
    per_token = torch.where(mask, each - advantage * logprob, 0.0)
    return {
        "token": per_token.sum() / mask.sum(),
        "sequence": (per_token.sum(1) / mask.sum(1)).mean(),
        "constant": per_token.sum() / (len(mask) * settings.max_response_length),
    }[settings.loss_aggregation]


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 30])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
async def test_the_gradient_is_that_of_autograd_through_the_plain_forward(
    policy: Policy, folder: Path, settings: dict[str, Any], micro_batch_tokens: int
) -> None:
    made = config(folder, **settings)
    batch = await drawn(policy, made.temperature)

    def compare() -> None:
        nonlocal batch
        if made.distills_sampled:
            batch = replace(batch, teacher_logprob=teacher_logprob(policy, batch))
        want = gradients(policy, lambda: loss_by_hand(policy, batch, made).backward())
        optimiser = make_optimiser(policy, learning_rate=0.0, weight_decay=0.0)
        got = gradients(
            policy,
            lambda: update(
                policy, batch, optimiser, ALGORITHMS[made.algorithm].objective(made),
                max_grad_norm=1e9, temperature=made.temperature,
                micro_batch_tokens=micro_batch_tokens,
            ),
        )  # fmt: skip
        assert max(float(g.abs().max()) for g in want.values()) > 1e-3
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=2e-6, msg=name)

    await work(compare)


def gradients(policy: Policy, run: Callable[[], object]) -> dict[str, Tensor]:
    """Return the gradients that a call leaves in the weights."""
    named = policy.named_trainable()
    for parameter in named.values():
        parameter.grad = None
    kept: dict[str, Tensor] = {}

    def keep(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        kept[name] = parameter.grad.clone()

    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(keep, name))
        for name, parameter in named.items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return kept


@pytest.mark.parametrize(
    "settings",
    [
        {"distill_beta": 0.5},
        {"distill_over": "sampled"},
        {"distill_lambda": 0.5, "distill_beta": 0.0},
        {"distill_lambda": 0.0},
        {"lora_rank": 4},
    ],
    ids=str,
)
async def test_the_divergence_falls_without_any_reward(
    folder: Path, settings: dict[str, Any]
) -> None:
    items = [TrajectoryItem(prompt, "Yes.") for prompt in [*PROMPTS, "Hum.", "Go."]]
    rate = 2e-2 if "lora_rank" in settings else 2e-3
    made = config(folder, epochs=6, batch_size=4, eval_every=6, learning_rate=rate, **settings)
    trainer = VeRLTrainer(made, eval_dataset=items)
    before = await trainer.evaluate()
    assert before.reward is None
    metrics = await trainer.train(items)
    row = trainer.history[-1]
    assert "reward" not in row
    assert "flat_groups" not in row
    assert row["eval/divergence"] < 0.8 * before.extra["divergence"]
    assert "eval/reward" not in row
    assert metrics.reward is None


async def test_a_reward_is_added_and_its_metrics_are_logged(folder: Path) -> None:
    trainer = VeRLTrainer(config(folder, kl_coef=0.1), PROBE)
    metrics = await trainer.train(PROMPTS)
    assert metrics.reward is not None
    assert {"divergence", "kl", "reward/probe"} <= metrics.extra.keys()


async def test_rewards_that_never_differ_do_not_end_a_run_with_a_teacher(folder: Path) -> None:
    made = config(folder, epochs=3, max_flat_steps=1)
    trainer = VeRLTrainer(made, [RewardSpec("same", 1.0, lambda output: 0.5 + 0 * len(output))])
    await trainer.train(PROMPTS)
    assert len(trainer.history) >= 3
    assert all(row["grad_norm"] > 0 for row in trainer.history)


@pytest.mark.parametrize("over", ["vocabulary", "sampled"])
@pytest.mark.parametrize("aggregation", ["token", "episode"])
async def test_episodes_of_an_agent_learn_from_a_teacher(
    folder: Path, over: str, aggregation: str
) -> None:
    made = config(
        folder, epochs=8, learning_rate=2e-3, distill_over=over, loss_aggregation=aggregation
    )
    tasks = ["hello", "abc"]
    trainer = VeRLTrainer(made, agent=branching)
    policy = await trainer.policy()
    setting = PlaySetting(policy, made, branching, ())
    async with LivePolicy(policy, max_new_tokens=6) as live:
        played = await play(setting, live, as_tasks(tasks), [[1, 2, 3], [4, 5, 6]])
    probe = (await work(credit_episodes, policy, made, *played)).credited.batch
    assert probe is not None
    before = await work(measure_divergence, policy, probe, temperature=1.0, beta=1.0)
    await trainer.train(tasks)
    after = await work(measure_divergence, policy, probe, temperature=1.0, beta=1.0)
    assert after < 0.9 * before
    assert trainer.history[0]["streams"] > 1
    assert "reward" not in trainer.history[0]


async def test_tokens_of_an_episode_share_its_weight(folder: Path, policy: Policy) -> None:
    """Twice the weight of a token is twice its part of the loss, in both forms."""
    batch = await drawn(policy, 1.0)
    weight = torch.linspace(0, 2, batch.mask.numel()).view(batch.mask.shape)
    for over in ("vocabulary", "sampled"):
        made = config(folder, distill_over=over)
        objective: Any = ALGORITHMS[made.algorithm].objective(made)

        def loss(batch: Batch, objective: Any = objective) -> Tensor:  # noqa: ANN401 - as above
            scored = objective.score(policy, batch, temperature=1.0)
            value, _ = objective(scored, batch, Part(1, 1))
            return torch.cat([g.flatten() for g in torch.autograd.grad(
                value, list(policy.named_trainable().values()))])  # fmt: skip

        def parts(batch: Batch = batch, loss: Any = loss) -> list[Tensor]:  # noqa: ANN401 - as above
            assert batch.advantage is not None
            plain = replace(
                batch,
                advantage=torch.zeros_like(batch.advantage),
                teacher_logprob=teacher_logprob(policy, batch),
            )
            return [
                loss(replace(plain, weight=weight)),
                loss(replace(plain, weight=2 * weight)),
                loss(replace(plain, weight=torch.ones_like(weight))),
                loss(plain),
            ]

        once, twice, ones, none = await work(parts)
        torch.testing.assert_close(2 * once, twice, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(ones, none, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(once, none, rtol=1e-2, atol=1e-5)


async def test_a_run_resumed_inside_a_step_ends_as_one_that_was_not(
    folder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "epochs": 2, "ppo_epochs": 2, "minibatch_size": 3, "save_every": 1, "resume": True,
    }  # fmt: skip

    async def run(where: str, **further: object) -> tuple[VeRLTrainer, Tensor]:
        made = config(folder, output_dir=tmp_path / where, **(settings | further))
        trainer = VeRLTrainer(made, PROBE)
        await trainer.train([*PROMPTS, "Hum.", "Go."])
        named = (await trainer.policy()).named_trainable()
        return trainer, torch.cat([p.detach().flatten().clone() for p in named.values()])

    for over in ("vocabulary", "sampled"):
        _, whole = await run(f"whole {over}", distill_over=over)
        await run(f"cut {over}", distill_over=over, max_seconds=1e-9)
        resumed, weights = await run(f"cut {over}", distill_over=over)
        assert len(resumed.history) == 3
        assert torch.equal(weights, whole)


async def test_a_plan_counts_the_teachers_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What this process uses already differs from one estimate to the next.
    monkeypatch.setattr(memory, "_resident", lambda _: 0)
    with_teacher = await VeRLTrainer(config(folder)).plan(PROMPTS)
    sampled = await VeRLTrainer(config(folder, distill_over="sampled")).plan(PROMPTS)
    alone = await VeRLTrainer(VeRLConfig(**(SMALL | {"algorithm": "grpo"})), PROBE).plan(PROMPTS)
    weights = 4 * sum(p.numel() for p in wider_model().parameters())
    assert with_teacher.method == "distillation"
    assert with_teacher.memory_bytes is not None
    assert sampled.memory_bytes is not None
    assert alone.memory_bytes is not None
    assert sampled.memory_bytes == alone.memory_bytes + weights
    assert with_teacher.memory_bytes > alone.memory_bytes + weights


# Refusals.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher": None}, "algorithm='distill' needs teacher="),
        ({"teacher_url": "127.0.0.1:8000"}, "teacher_url: base_url must begin with http"),
        ({"teacher_url": "http://h/v1", "distill_over": "vocabulary"}, "needs a teacher in this"),
        ({"teacher_url": "http://h/v1", "distill_beta": 0.5}, "distill_beta=0.5 needs whole"),
        ({"teacher_url": "http://h/v1", "temperature": 0.7}, "temperature=0.7: an endpoint"),
        ({"distill_over": "sampled", "distill_lambda": 0.5}, "distill_lambda=0.5 needs whole"),
        ({"distill_beta": 1.5}, "distill_beta must be at most 1, got 1.5"),
        ({"distill_coef": 0}, "distill_coef must be above 0"),
        ({"distill_over": "topk"}, "distill_over must be one of"),
        ({"ratio": "sequence"}, "ratio='sequence' makes GRPO into GSPO"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VeRLConfig(**(SMALL | {"teacher": "tiny"} | settings))


@pytest.mark.parametrize(
    ("settings", "rewards", "agent", "words"),
    [
        ({"algorithm": "grpo", "teacher": "tiny"}, PROBE, None, "no effect with algorithm='grpo'"),
        ({"max_extra_groups": 2}, PROBE, branching, "max_extra_groups=2 replaces groups"),
        ({"solved_rate": 0.5}, [], None, "need rewards of the policy's own answers"),
        ({"group_size": 1}, PROBE, None, "group_size=1 leaves nothing to compare"),
        ({"distill_lambda": 0.5}, [], branching, "distill_lambda=0.5 is for answers"),
    ],
)
async def test_runs_that_cannot_work_are_refused_before_they_start(
    settings: dict[str, Any], rewards: list[RewardSpec], agent: object, words: str
) -> None:
    made = VeRLConfig(**(SMALL | {"teacher": "tiny"} | settings))
    with pytest.raises(ConfigError, match=words):
        await VeRLTrainer(made, rewards, agent=agent).plan(["a", "b"])


async def test_a_reward_of_weight_zero_is_measured_with_one_sample_a_prompt(folder: Path) -> None:
    trainer = VeRLTrainer(config(folder, group_size=1), [RewardSpec("probe", 0.0, spread)])
    metrics = await trainer.train(PROMPTS)
    assert metrics.extra["reward/probe"] > 0
    assert metrics.extra["pg_loss"] == 0


@pytest.mark.parametrize("what", ["plan", "train"])
@pytest.mark.parametrize(
    ("teacher", "error", "words"),
    [
        ("missing", StorageError, "teacher='.*missing': .*is missing or empty"),
        ("other", ConfigError, r"another tokenizer than model='tiny': 1 of 259 tokens differ, such "
         r"as '<\|pad\|>', which is token 258 here; the teacher does not have it"),
        ("short", ConfigError, "has a context of 16 tokens, .* may have 4096"),
    ],
)  # fmt: skip
async def test_a_teacher_that_cannot_teach_is_refused_by_name(
    tmp_path: Path, teacher: str, error: type[TrainError], words: str, what: str
) -> None:
    where = tmp_path / teacher
    if teacher == "other":
        save(wider_model(), where)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (where / name).read_text(encoding="utf-8")
            (where / name).write_text(text.replace("<|pad|>", "<|end|>"), encoding="utf-8")
    if teacher == "short":
        save(wider_model(max_position_embeddings=16), where)
    trainer = VeRLTrainer(config(where, output_dir=tmp_path / "run"))
    with pytest.raises(error, match=words):
        await getattr(trainer, what)(PROMPTS)
    with pytest.raises(error, match=words):  # the second call must not continue without a teacher
        await trainer.policy()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


async def test_a_teacher_that_is_the_policy_itself_is_noticed() -> None:
    trainer = VeRLTrainer(VeRLConfig(**(SMALL | {"teacher": "tiny"})))
    with pytest.raises(TrainingError, match="exactly the policy's on every token"):
        await trainer.train(PROMPTS)


@pytest.mark.parametrize(
    ("action", "words"),
    [("", "item 1 has no action"), ("far too long", "the answer of item 1 has 13 tokens, more")],
)
async def test_data_without_usable_answers_is_refused_by_item(
    folder: Path, action: str, words: str
) -> None:
    items = [TrajectoryItem("Sing.", "La"), TrajectoryItem("Hum.", action)]
    with pytest.raises(DataError, match=words):
        await VeRLTrainer(config(folder, distill_lambda=0.5)).train(items)
