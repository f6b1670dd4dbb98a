from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orbiter.train import (
    ConfigError,
    DataError,
    RewardModel,
    RewardModelConfig,
    RewardModelTrainer,
    RewardSpec,
    StateError,
    StorageError,
    TrainError,
    TrainerState,
    TrajectoryDataset,
    TrajectoryItem,
    VeRLConfig,
    VeRLTrainer,
    filter_by_score,
)
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.prompt import render
from orbiter.train.engine.turn_end import render_action
from orbiter.train.formats.preference import preference_pairs
from orbiter.train.report import write_report
from orbiter.train.runlog import read_run
from orbiter.train.verl.reward import score as ask_rewards
from tests.agents.playing import ask

WORDS = ("red", "oak", "cat", "gold", "iron", "blue", "sun", "ice")
ITEMS = [
    TrajectoryItem(f"What is {word}?", answer, reward)
    for word in WORDS
    for answer, reward in ((f"{word} is nice", 1.0), (f"bad {word}", 0.0))
]
TRAIN, HELD_OUT = ITEMS[:10], ITEMS[10:]
LENGTHS = [
    TrajectoryItem(f"Say a{a}.", "e" * count, float(count))
    for a in range(8)
    for count in (1, 4, 8, 12)
]
"""Longer answers are better."""


def trainer(*, eval_dataset: object = None, **settings: Any) -> RewardModelTrainer:  # noqa: ANN401 - RewardModelConfig's
    small: dict[str, Any] = {
        "model": "tiny",
        "epochs": 4,
        "batch_size": 2,
        "learning_rate": 1e-3,
    }
    return RewardModelTrainer(RewardModelConfig(**(small | settings)), eval_dataset=eval_dataset)


@pytest.fixture(scope="module")
def likes_length(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a reward model that prefers long answers."""
    made = trainer(epochs=10, batch_size=4)
    asyncio.run(made.train(LENGTHS))
    return asyncio.run(made.save(tmp_path_factory.mktemp("models") / "likes-length"))


def dataset_of(items: list[TrajectoryItem]) -> TrajectoryDataset:
    dataset = TrajectoryDataset()
    for item in items:
        dataset.capture(item)
    return dataset


def weights(policy: Policy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in policy.named_trainable().values()]


def plain_scores(folder: Path, items: list[TrajectoryItem], *, together: bool) -> list[float]:
    """Return the scores by Transformers alone, with padding or one by one."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [render(tokenizer, item) + render_action(tokenizer, item) for item in items]
    with torch.no_grad():
        if together:
            padded = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
            scores: list[float] = model(**padded).logits[:, 0].tolist()
            return scores
        return [float(model(torch.tensor([text])).logits[0, 0]) for text in texts]


@pytest.mark.parametrize("lora_rank", [0, 4])
async def test_a_trained_model_scores_the_better_answers_of_held_out_pairs_higher(
    lora_rank: int,
) -> None:
    made = trainer(lora_rank=lora_rank, epochs=8, learning_rate=1e-2 if lora_rank else 1e-3)
    before = await made.quality(HELD_OUT)
    metrics = await made.train(TRAIN)
    after = await made.quality(HELD_OUT)
    assert after.accuracy.mean == 1.0
    assert after.accuracy.low == pytest.approx(0.025 ** (1 / 3)), "exact, of three pairs of three"
    assert after.loss.mean < before.loss.mean - 0.1
    assert metrics.loss is not None
    assert made.state is TrainerState.TRAINED
    measured = await made.evaluate(HELD_OUT)
    assert measured.accuracy == 1.0
    assert measured["agreement"] == 1.0


@pytest.mark.parametrize("lora_rank", [0, 4])
async def test_plain_transformers_gives_the_same_scores_and_so_does_the_model_loaded_back(
    lora_rank: int, tmp_path: Path
) -> None:
    made = trainer(lora_rank=lora_rank, learning_rate=1e-2, epochs=1)
    await made.train(TRAIN)
    folder = await made.save(tmp_path / "model")
    ours = await (await made.reward_model()).score(ITEMS)
    assert max(ours) - min(ours) > 0.05
    for together in (True, False):
        assert plain_scores(folder, ITEMS, together=together) == pytest.approx(ours, abs=1e-4)
    loaded = RewardModel(folder)
    assert await loaded.score(ITEMS) == pytest.approx(ours, abs=1e-4)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["num_labels"] == 1 if "num_labels" in config else len(config["id2label"]) == 1
    assert "AutoModelForSequenceClassification" in (folder / "README.md").read_text()


@pytest.mark.parametrize("pad", ["<|eos|>", None])
async def test_a_tokenizer_that_pads_with_the_end_of_a_turn_hides_no_answers_end(
    pad: str | None, tmp_path: Path
) -> None:
    base = load_model("tiny")
    base.tokenizer.pad_token = pad
    base.model.config.pad_token_id = base.tokenizer.pad_token_id
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    made = trainer(model=str(tmp_path / "base"), epochs=1)
    await made.train(TRAIN)
    folder = await made.save(tmp_path / "model")
    ours = await (await made.reward_model()).score(ITEMS)
    assert plain_scores(folder, ITEMS, together=True) == pytest.approx(ours, abs=1e-4)
    assert plain_scores(folder, ITEMS, together=False) == pytest.approx(ours, abs=1e-4)


async def test_a_saved_reward_model_is_trained_further(likes_length: Path) -> None:
    fresh, further = trainer(epochs=1), trainer(model=str(likes_length), epochs=1)
    before = await further.quality(LENGTHS)
    assert before.accuracy.mean > 0.95
    await further.train(LENGTHS)
    await fresh.train(LENGTHS)
    assert (await further.quality(LENGTHS)).loss.mean < (await fresh.quality(LENGTHS)).loss.mean


@pytest.mark.parametrize("lora_rank", [0, 4])
async def test_a_resumed_run_ends_as_one_that_was_never_interrupted(
    lora_rank: int, tmp_path: Path
) -> None:
    common: dict[str, Any] = {
        "lora_rank": lora_rank, "save_every": 1, "eval_every": 2, "eval_dataset": HELD_OUT,
    }  # fmt: skip
    whole = trainer(output_dir=tmp_path / "whole", **common)
    await whole.train(TRAIN)
    cut = trainer(output_dir=tmp_path / "cut", max_seconds=1e-9, **common)
    await cut.train(TRAIN)
    assert len(cut.history) == 1
    again = trainer(output_dir=tmp_path / "cut", resume=True, **common)
    await again.train(TRAIN)
    for mine, theirs in zip(
        weights(await again.policy()), weights(await whole.policy()), strict=True
    ):
        assert torch.equal(mine, theirs)
    rows = [read_run(tmp_path / name).metrics for name in ("whole", "cut")]
    assert rows[0] == rows[1]
    assert "eval/accuracy" in rows[0][1]
    with pytest.raises(DataError, match="other data"):
        await trainer(output_dir=tmp_path / "cut", resume=True, **common).train(HELD_OUT)


async def test_the_margin_asks_for_more_distance_and_centring_for_scores_near_zero() -> None:
    free, wide, near = (
        trainer(epochs=12, **more) for more in ({}, {"margin_coef": 6.0}, {"centering_coef": 0.5})
    )
    for each in (free, wide, near):
        await each.train(TRAIN)

    def last(each: RewardModelTrainer, name: str) -> float:
        return each.history[-1][name]

    assert last(wide, "margin") > last(free, "margin") + 1
    scores = [await (await each.reward_model()).score(TRAIN) for each in (free, near)]
    sums = [sum((a + b) ** 2 for a, b in zip(s[::2], s[1::2], strict=True)) for s in scores]
    assert sums[1] < max(sums[0] / 2, 0.05)


async def test_the_plan_and_the_opening_say_what_a_run_takes() -> None:
    made = trainer(eval_dataset=HELD_OUT)
    plan = await made.plan(TRAIN)
    assert (plan.method, plan.items, plan.held_out, plan.steps) == ("reward model", 5, 3, 12)
    assert plan.tokens is not None
    assert plan.memory_bytes is not None
    assert plan.longest_item is not None


async def test_the_memory_estimate_does_not_count_the_vocabulary_of_every_token() -> None:
    from orbiter.train import SFTConfig, SFTTrainer

    long = [replace(item, action=item.action + "x" * 400) for item in TRAIN]
    reward = await trainer(batch_size=5).plan(long)
    sft = await SFTTrainer(SFTConfig(model="tiny", batch_size=10)).plan(long)
    assert reward.memory_bytes is not None
    assert sft.memory_bytes is not None
    assert reward.memory_bytes < sft.memory_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_response_length": 8}, "samples nothing"),
        ({"margin_coef": -1.0}, "margin_coef"),
        ({"centering_coef": float("nan")}, "centering_coef"),
        ({"eval_every": 2}, "needs eval_dataset"),
    ],
)
async def test_settings_that_cannot_work_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await trainer(**settings).train(TRAIN)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty"),
        ([TrajectoryItem("a", "b")], "without a reward"),
        ([TrajectoryItem("a", "b", 1.0)], "single attempt"),
        ([TrajectoryItem("a", "b", 1.0), TrajectoryItem("a", "c", 1.0)], "same reward"),
    ],
)
async def test_data_without_pairs_are_refused(data: list[TrajectoryItem], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await trainer().train(data)


async def test_pairs_and_items_give_the_same_run() -> None:
    of_items, of_pairs = trainer(epochs=1), trainer(epochs=1)
    await of_items.train(dataset_of(TRAIN))
    await of_pairs.train(list(preference_pairs(TRAIN)))
    assert of_items.history[-1]["loss"] == of_pairs.history[-1]["loss"]


async def test_an_episode_is_scored_at_the_end_of_its_last_turn() -> None:
    def episode(name: str, first: str, last: str, reward: float) -> list[TrajectoryItem]:
        asked = [{"role": "user", "content": "Go."}]
        then = [*asked, {"role": "assistant", "content": first}, {"role": "user", "content": "On."}]
        return [
            TrajectoryItem("Go.", first, None, task_id="t", episode_id=name, step=0,
                           messages=asked),
            TrajectoryItem("On.", last, reward, task_id="t", episode_id=name, step=1,
                           messages=then),
        ]  # fmt: skip

    good, bad = episode("g", "left", "done", 1.0), episode("b", "right", "done", 0.0)
    made = trainer(epochs=8)
    await made.train([*good, *bad])
    model = await made.reward_model()
    episodes = await model.score([*good, *bad], whole_episodes=True)
    assert len(episodes) == 2
    assert episodes[0] > episodes[1] + 0.5, "they differ in their first turns only"
    turns = await model.score([*good, *bad])
    assert [turns[1], turns[3]] == pytest.approx(episodes, abs=1e-5)


async def test_equal_prompts_change_no_score(likes_length: Path) -> None:
    model = RewardModel(likes_length)
    together = await model.score(LENGTHS[:4])
    alone = [(await model.score([item]))[0] for item in LENGTHS[:4]]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == sorted(together)


async def test_calls_that_wait_together_are_scored_in_one_batch(
    likes_length: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel(likes_length)
    batches: list[int] = []
    score = RewardModel._try_scores

    def counted(self: RewardModel, attempts: Any, first: int = 0) -> Any:  # noqa: ANN401
        batches.append(len(attempts))
        return score(self, attempts, first)

    monkeypatch.setattr(RewardModel, "_try_scores", counted)
    reward = RewardSpec("model", fn=model)
    items = LENGTHS[:16]
    scores = await ask_rewards([item.action for item in items], items, [reward], concurrency=16)
    assert batches == [16]
    assert scores.total == pytest.approx(await model.score(items), abs=1e-5)


async def test_one_answer_that_does_not_fit_fails_alone(likes_length: Path) -> None:
    model = RewardModel(likes_length)
    item = TrajectoryItem("Say.", "")
    answers = await asyncio.gather(
        model("e", item), model("e" * 5000, item), model("ee", item), return_exceptions=True
    )
    assert isinstance(answers[0], float)
    assert isinstance(answers[1], TrainError)
    assert isinstance(answers[2], float)
    with pytest.raises(DataError, match="does not fit"):
        await ask_rewards(["e" * 5000], [item], [RewardSpec("model", fn=model)])
    shortened = RewardModel(likes_length, on_long_prompt="truncate-left")
    long = TrajectoryItem("Say." * 2000, "")
    assert isinstance(await shortened("e", long), float)


async def test_a_cancelled_call_leaves_the_others_alone(likes_length: Path) -> None:
    model = RewardModel(likes_length)
    item = TrajectoryItem("Say.", "")
    first, second = (asyncio.ensure_future(model(text, item)) for text in ("e", "ee"))
    await asyncio.sleep(0)
    first.cancel()
    assert isinstance(await second, float)
    assert isinstance(await model("eee", item), float)


def test_one_model_serves_several_event_loops(likes_length: Path) -> None:
    model, item = RewardModel(likes_length), TrajectoryItem("Say.", "")

    async def ask() -> float:
        return await model("eee", item)

    assert asyncio.run(ask()) == asyncio.run(ask())


def test_filter_by_score_takes_a_reward_model(likes_length: Path) -> None:
    data = dataset_of(LENGTHS)
    kept = filter_by_score(data, quantile=0.5, key=RewardModel(likes_length))
    assert isinstance(kept, TrajectoryDataset)
    assert {len(item.action) for item in kept} == {8, 12}


async def test_a_reward_model_trains_a_policy_with_grpo(likes_length: Path) -> None:
    config = VeRLConfig(
        model="tiny", epochs=12, batch_size=4, group_size=8, max_response_length=12,
        learning_rate=3e-3,
    )  # fmt: skip
    policy = VeRLTrainer(config, [RewardSpec("model", fn=RewardModel(likes_length))])
    tasks = [f"Say a{a}." for a in range(8)]
    before = await policy.evaluate(tasks, samples=4)
    await policy.train(tasks)
    after = await policy.evaluate(tasks, samples=4)
    assert before.reward is not None
    assert after.reward is not None
    assert after.reward_interval is not None
    assert after.reward_interval.low > before.reward


async def test_a_reward_model_scores_an_agents_episodes(likes_length: Path) -> None:
    async def agent(task: str) -> str:
        reply = await ask([{"role": "user", "content": task}])
        return str(reply["content"])

    config = VeRLConfig(model="tiny", epochs=1, batch_size=2, group_size=2, max_response_length=6)
    policy = VeRLTrainer(config, [RewardSpec("model", fn=RewardModel(likes_length))], agent=agent)
    metrics = await policy.train(["Say a1.", "Say a2."])
    assert "reward/model" in metrics.extra


async def test_the_report_of_a_run_has_its_accuracy(tmp_path: Path) -> None:
    made = trainer(output_dir=tmp_path / "run", eval_every=2, eval_dataset=HELD_OUT)
    await made.train(TRAIN)
    page = write_report(tmp_path / "run").read_text()
    assert "eval/accuracy" in page
    assert (tmp_path / "run" / "best" / "config.json").is_file()
    assert isinstance((await RewardModel(tmp_path / "run" / "best").score(TRAIN))[0], float)


async def test_a_reward_model_gives_no_answers() -> None:
    with pytest.raises(StateError, match="gives no answers"):
        await trainer().generate(["hello"])


def test_a_folder_without_a_reward_model_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a reward model"):
        RewardModel(tmp_path)
    load_model("tiny").model.save_pretrained(tmp_path / "lm")
    with pytest.raises(StorageError, match="is not a reward model"):
        RewardModel(tmp_path / "lm")


async def test_a_classifier_with_two_labels_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    base = load_model("tiny")
    base.model.config.num_labels = 2
    LlamaForSequenceClassification(base.model.config).save_pretrained(tmp_path / "two")
    base.tokenizer.save_pretrained(tmp_path / "two")
    with pytest.raises(StorageError, match="2 numbers"):
        await RewardModel(tmp_path / "two").score(TRAIN)


async def test_a_damaged_reward_model_names_the_file(likes_length: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(likes_length, copy)
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        await RewardModel(copy).score(TRAIN)


async def test_evaluate_gives_the_same_numbers_from_a_folder(likes_length: Path) -> None:
    quality = await RewardModel(likes_length).evaluate(LENGTHS)
    assert quality.accuracy.mean > 0.95
    assert quality.agreement.mean > 0.9
    assert quality == await trainer(model=str(likes_length)).quality(LENGTHS)


def test_the_fingerprint_follows_the_weights(likes_length: Path, tmp_path: Path) -> None:
    made = trainer(epochs=1)
    asyncio.run(made.train(TRAIN))
    other = asyncio.run(made.save(tmp_path / likes_length.name))
    assert RewardModel(other).fingerprint != RewardModel(likes_length).fingerprint
    assert RewardModel(likes_length).fingerprint == RewardModel(likes_length).fingerprint
