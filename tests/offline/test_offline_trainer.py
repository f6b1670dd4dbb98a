from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train import ConfigError, DataError, OfflineConfig, OfflineTrainer, TrajectoryItem
from orbiter.train.agents.logged import logged_episodes
from orbiter.train.agents.streams import token_weights
from orbiter.train.engine.batch import collate
from orbiter.train.engine.objective import ImitationObjective, PolicyObjective
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.rollout import Rollout
from orbiter.train.engine.update import Objective, Part, logprob, score
from orbiter.train.offline.local import Log, LoggedBatch, batch_of, make_log, weighted
from tests.offline.logging import TASKS, logged, tiny_policy

METHODS = ("tis", "topr", "awr", "imitate")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture(scope="module")
def items(policy: Policy) -> list[TrajectoryItem]:
    return logged(policy)


def offline(**settings: Any) -> OfflineTrainer:  # noqa: ANN401 - OfflineConfig's
    small: dict[str, Any] = {"model": "tiny", "learning_rate": 3e-3, "batch_size": 2}
    return OfflineTrainer(OfflineConfig(**(small | settings)))


def gradient(policy: Policy, batch: Any, objective: Objective) -> Tensor:  # noqa: ANN401 - a Batch
    parameters = list(policy.named_trainable().values())
    whole = Part(tokens=1.0, rows=1.0)
    loss, _ = objective(score(policy, batch), batch, whole)
    gradients = torch.autograd.grad(loss, parameters)
    return torch.cat([each.flatten() for each in gradients])


def exact_log(policy: Policy, items: list[TrajectoryItem], config: OfflineConfig) -> Log:
    """Return the log with the log probabilities of this very policy, as the engine scores them."""
    episodes = logged_episodes(items, policy.tokenizer, logprobs=True).episodes
    log = make_log(episodes, config)
    batch = batch_of(log, range(len(episodes)), policy.device).batch
    now = logprob(policy, batch)
    row = 0
    for episode in episodes:
        for stream in episode.streams:
            stream.logprobs = now[row, : len(stream.token_ids)].tolist()
            row += 1
    return log


@pytest.mark.parametrize("aggregation", ["token", "episode", "constant"])
@pytest.mark.parametrize(
    "settings", [{"method": "tis"}, {"method": "tis", "importance": "token"}, {"method": "topr"}]
)
def test_where_the_sampling_policy_is_the_present_one_the_gradient_is_on_policy(
    policy: Policy, items: list[TrajectoryItem], settings: dict[str, Any], aggregation: str
) -> None:
    config = OfflineConfig(loss_aggregation=aggregation, **settings)  # type: ignore[arg-type]
    log = exact_log(policy, items, config)
    everything = range(len(log.episodes))
    ours = weighted(policy, config, log, batch_of(log, everything, policy.device))
    assert ours.effective_share == pytest.approx(1.0)

    streams = [episode.streams for episode in log.episodes]
    shares = token_weights(streams, aggregation, max_tokens=log.longest)  # type: ignore[arg-type]
    rows = [
        Rollout(s.token_ids, s.mask, s.logprobs, s.prompt_length) for each in streams for s in each
    ]
    batch = collate(rows)
    advantage = torch.zeros(batch.mask.shape)
    place = 0
    for number, of_episode in enumerate(shares):
        for share in of_episode:
            advantage[place, : len(share)] = float(log.advantage[number]) * torch.tensor(share)
            place += 1
    on_policy = replace(batch, advantage=advantage * int(batch.mask.sum()))
    want = gradient(policy, on_policy, PolicyObjective(aggregation="token"))
    have = gradient(policy, ours.batch, ImitationObjective())
    assert float((have - want).norm() / want.norm()) < 1e-6


def test_an_episode_that_has_become_likelier_counts_by_its_ratio_up_to_the_limit(
    policy: Policy, items: list[TrajectoryItem]
) -> None:
    config = OfflineConfig(method="tis", max_importance=1.5, baseline="none")  # type: ignore[arg-type]
    log = exact_log(policy, items, config)
    for number, shift in enumerate((-0.05, 0.02, 0.2)):
        for stream in log.episodes[number].streams:
            stream.logprobs = [
                p + shift * m for p, m in zip(stream.logprobs, stream.mask, strict=True)
            ]
    chosen = [0, 1, 2]
    batch = batch_of(log, chosen, policy.device)
    made = weighted(policy, config, log, batch)
    assert made.batch.weight is not None
    for number, shift in enumerate((-0.05, 0.02, 0.2)):
        tokens = log.episodes[number].sampled_tokens
        expected = log.episodes[number].reward * min(1.5, math.exp(-shift * tokens))
        row = made.batch.weight[batch.episode == number]
        assert row[row != 0].tolist() == pytest.approx([expected] * tokens, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
async def test_good_episodes_become_likelier_than_bad_ones(
    policy: Policy, items: list[TrajectoryItem], method: str
) -> None:
    trainer = offline(method=method, epochs=12, learning_rate=1e-3, min_effective_share=0.0)
    before = await trainer.evaluate(items)
    await trainer.train(items)
    after = await trainer.evaluate(items)
    assert after.reward is not None
    assert before.reward is not None
    assert after.reward > before.reward + 0.005
    assert before["effective_share"] > 0.99
    assert after["effective_share"] < before["effective_share"]


async def test_a_failed_episode_and_one_without_a_reward_are_left_out_and_named(
    items: list[TrajectoryItem], caplog: pytest.LogCaptureFixture
) -> None:
    marked = [
        replace(item, metadata={"episode_error": "boom"})
        if item.episode_id == f"{TASKS[0]}0"
        else replace(item, reward=None)
        if item.episode_id == f"{TASKS[1]}0"
        else item
        for item in items
    ]
    trainer = offline()
    await trainer.train(marked)
    assert "1 failed, 1 no reward" in caplog.text
    assert trainer.history[0]["episodes"] == 10
    everything = offline(failed_episodes=True)
    await everything.train(marked)
    assert everything.history[0]["episodes"] == 11


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": None, "logprobs": None}, "no token ids"),
        ({"prompt_token_ids": None}, "no token ids"),
        ({"logprobs": None}, "no log probability for each sampled token"),
        ({"action": "quite another answer"}, "of another tokenizer"),
        ({"token_ids": [9_999], "logprobs": [-1.0]}, "the token id 9999"),
        ({"token_ids": [-5], "logprobs": [-1.0]}, "the token id -5"),
        ({"prompt_token_ids": [70, -1]}, "the token id -1"),
    ],
)
async def test_an_answer_that_cannot_be_learned_from_is_named(
    items: list[TrajectoryItem], change: dict[str, Any], said: str
) -> None:
    broken = [*items[:3], replace(items[3], **change), *items[4:]]
    with pytest.raises(DataError, match=rf"1 of 24 captured answers.*item 3 \(episode .*{said}"):
        await offline().train(broken)


@pytest.mark.parametrize("method", ["awr", "imitate"])
async def test_methods_without_ratios_need_no_log_probabilities(
    items: list[TrajectoryItem], method: str
) -> None:
    bare = [replace(item, logprobs=None) for item in items]
    trainer = offline(method=method)
    metrics = await trainer.train(bare)
    assert metrics.loss is not None
    assert "effective_share" not in trainer.history[0]


async def test_episodes_of_a_policy_that_is_too_different_are_refused(
    items: list[TrajectoryItem],
) -> None:
    foreign = [
        replace(item, logprobs=[p + (n % 7 - 3) / 2 for p in item.logprobs or ()])
        for n, item in enumerate(items)
    ]
    with pytest.raises(DataError, match="effective sample size of the 12 logged episodes"):
        await offline(min_effective_share=0.5).train(foreign)


async def test_a_run_ends_when_the_policy_has_moved_too_far(
    items: list[TrajectoryItem], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = offline(epochs=50, learning_rate=3e-2, min_effective_share=0.5)
    await trainer.train(items)
    assert 1 <= len(trainer.history) < 50
    assert "below min_effective_share=0.5" in caplog.text


async def test_nothing_to_compare_is_an_error_that_says_what_to_do(
    items: list[TrajectoryItem],
) -> None:
    alone = [replace(item, task_id=item.episode_id) for item in items]
    with pytest.raises(DataError, match="one episode a task; use baseline='dataset'"):
        await offline().train(alone)
    metrics = await offline(baseline="dataset").train(alone)
    assert metrics.loss is not None
    negative = [replace(item, reward=-1.0) for item in items]
    with pytest.raises(DataError, match="must not be negative"):
        await offline(method="imitate").train(negative)
    waiting = [replace(item, reward=None) for item in items]
    with pytest.raises(ConfigError, match="no logged item has a reward"):
        await offline().train(waiting)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"system_prompt": "x"}, "system_prompt has no effect"),
        ({"on_long_prompt": "truncate-left"}, "would change captured prompts"),
        ({"importance": "token", "method": "topr"}, "goes with method='tis' only"),
        ({"method": "grpo"}, "method must be"),
        ({"max_importance": 0}, "max_importance"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        OfflineConfig(**settings)


async def test_a_resumed_run_ends_as_one_that_was_never_interrupted(
    items: list[TrajectoryItem], tmp_path: Path
) -> None:
    common: dict[str, Any] = {"epochs": 3, "batch_size": 1, "save_every": 1}
    whole = offline(output_dir=tmp_path / "whole", **common)
    await whole.train(items)
    cut = offline(output_dir=tmp_path / "cut", max_seconds=1e-9, **common)
    await cut.train(items)
    again = offline(output_dir=tmp_path / "cut", resume=True, **common)
    await again.train(items)
    first = (await whole.policy()).named_trainable()
    second = (await again.policy()).named_trainable()
    assert all(torch.equal(first[name], second[name]) for name in first)
    plan = await offline(**{**common, "save_every": 0}).plan(items)
    assert (plan.items, plan.steps) == (2, 6)


def test_the_command_line_learns_from_a_file(
    items: list[TrajectoryItem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orbiter.train.cli.app import main
    from orbiter.train.trajectory.codec import encode_item

    file = tmp_path / "logged.jsonl"
    file.write_bytes(b"\n".join(encode_item(item) for item in items) + b"\n")
    words = ["offline", f"data.train={file}", "offline.model=tiny", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "offline"
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_rows_of_one_episode_share_its_weight(policy: Policy, items: list[TrajectoryItem]) -> None:
    second = items[1]
    apart = [items[0], replace(second, prompt_token_ids=list(second.prompt_token_ids or ())[5:])]
    episodes = logged_episodes([*apart, *items[2:]], policy.tokenizer, logprobs=True).episodes
    config = OfflineConfig(baseline="none")
    log = make_log(episodes, config)
    batch: LoggedBatch = batch_of(log, [0, 1], policy.device)
    assert batch.episode.tolist() == [0, 0, 1]
    made = weighted(policy, config, log, batch)
    assert made.batch.weight is not None
    ours = made.batch.weight[:2]
    assert ours[ours != 0].unique().numel() == 1
