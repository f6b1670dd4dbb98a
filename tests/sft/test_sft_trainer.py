import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from orbiter.train.engine import arithmetic
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.prompt import render
from orbiter.train.engine.turn_end import render_action
from orbiter.train.errors import ConfigError, DataError
from orbiter.train.runlog import read_run
from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.trainer import TrainerState
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem

PAIRS = {"red": "a colour", "a cat": "an animal", "oak": "a tree", "gold": "a metal"}
ITEMS = [
    TrajectoryItem(state=f"What is {what}?", action=answer, reward=1.0)
    for what, answer in PAIRS.items()
]
NOISE = [TrajectoryItem(state=item.state, action="nonsense", reward=0.0) for item in ITEMS]


def sft(*, dataset: object = None, eval_dataset: object = None, **settings: object) -> SFTTrainer:
    small: dict[str, Any] = {
        "model": "tiny",
        "epochs": 40,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "max_response_length": 16,
    }
    config = SFTConfig(**(small | settings))
    return SFTTrainer(config, dataset=dataset, eval_dataset=eval_dataset)


async def answers(trainer: SFTTrainer) -> list[str]:
    return await trainer.generate([item.state for item in ITEMS])


@pytest.mark.usefixtures("each_processor")
async def test_imitation_learns_the_answers_and_where_they_end() -> None:
    trainer = sft()
    before = (await trainer.evaluate(ITEMS)).loss
    metrics = await trainer.train(ITEMS)
    assert before is not None
    assert metrics.loss is not None
    assert metrics.loss < before / 10
    assert await answers(trainer) == list(PAIRS.values())
    assert trainer.state is TrainerState.TRAINED


async def test_a_generator_as_data_set_is_read_once_and_trained_on() -> None:
    trainer = sft(eval_dataset=iter(ITEMS[:1]), epochs=1)
    assert (await trainer.plan(item for item in ITEMS)).steps == 1
    metrics = await trainer.train()
    assert metrics.loss is not None
    assert list(trainer.dataset) == ITEMS
    with pytest.raises(ConfigError, match="check_dataset raised DataError: the data set is empty"):
        await trainer.train(iter(ITEMS[:0]))


async def test_only_the_action_and_its_end_are_trained_on() -> None:
    loaded = load_model("tiny")
    prompt = render(loaded.tokenizer, ITEMS[0])
    answer = render_action(loaded.tokenizer, ITEMS[0])
    assert answer[-1] == loaded.tokenizer.eos_token_id
    token_ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = loaded.model(token_ids).logits
    logprob = logits[0, :-1].log_softmax(-1).gather(1, token_ids[0, 1:, None])[:, 0]
    by_hand = -float(logprob[len(prompt) - 1 :].mean())
    assert (await sft().evaluate(ITEMS[:1])).loss == pytest.approx(by_hand, rel=1e-5)


async def test_accuracy_is_the_share_of_tokens_that_the_model_would_say() -> None:
    trainer = sft(epochs=6)
    await trainer.train(ITEMS)
    loaded = await trainer.policy()
    hits = tokens = 0
    for item in ITEMS:
        prompt = render(loaded.tokenizer, item)
        answer = render_action(loaded.tokenizer, item)
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt + answer])).logits[0]
        said = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
        hits += sum(a == b for a, b in zip(said, answer, strict=True))
        tokens += len(answer)
    assert 0 < hits < tokens
    assert (await trainer.evaluate(ITEMS)).accuracy == hits / tokens


async def test_only_items_that_are_good_enough_are_imitated() -> None:
    trainer = sft(min_reward=0.5)
    await trainer.train([*NOISE, *ITEMS])
    assert await answers(trainer) == list(PAIRS.values())
    with pytest.raises(ConfigError, match="none of 4 items is left"):
        await sft(min_reward=0.5).train(NOISE)
    with pytest.raises(ConfigError, match="item 0 has reward None"):
        await sft(min_reward=0.5).train([TrajectoryItem(state="x", action="y")])


async def test_an_item_counts_in_proportion_to_its_reward() -> None:
    trainer = sft(reward_weighted=True)
    await trainer.train([*NOISE, *ITEMS])
    good, bad = (await trainer.evaluate(ITEMS)).loss, (await trainer.evaluate(NOISE)).loss
    assert good is not None
    assert bad is not None
    assert good < bad / 4, "what has weight 0 is not learned"
    with pytest.raises(ConfigError, match="weights must not be negative"):
        await sft(reward_weighted=True).train([TrajectoryItem(state="x", action="y", reward=-1.0)])


async def test_equal_rewards_weigh_nothing_differently() -> None:
    plain, weighted = sft(epochs=2), sft(epochs=2, reward_weighted=True)
    await plain.train(ITEMS)
    await weighted.train([TrajectoryItem(i.state, i.action, 0.3) for i in ITEMS])
    assert plain.history[-1]["loss"] == pytest.approx(weighted.history[-1]["loss"], rel=1e-5)


async def test_a_prompt_without_an_action_is_refused() -> None:
    with pytest.raises(ConfigError, match="item 1 has no action to imitate"):
        await sft().train([ITEMS[0], "only a prompt"])


async def test_the_same_seed_gives_the_same_bits() -> None:
    losses = []
    for seed in (1, 1, 2):
        trainer = sft(epochs=3, batch_size=3, seed=seed)
        await trainer.train(ITEMS)
        losses.append([row["loss"] for row in trainer.history])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


async def test_how_a_batch_is_split_changes_nothing() -> None:
    losses = []
    for tokens in (10_000, 40):
        trainer = sft(epochs=4, micro_batch_tokens=tokens)
        await trainer.train(ITEMS)
        losses.append([row["loss"] for row in trainer.history])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


async def test_a_resumed_run_ends_as_one_that_was_never_interrupted(tmp_path: Path) -> None:
    whole = sft(epochs=4, batch_size=3, output_dir=tmp_path / "whole", save_every=1)
    await whole.train(ITEMS)
    first = sft(epochs=4, batch_size=3, output_dir=tmp_path / "cut", save_every=1, max_seconds=1e-9)
    await first.train(ITEMS)
    assert len(first.history) == 1
    second = sft(epochs=4, batch_size=3, output_dir=tmp_path / "cut", save_every=1, resume=True)
    metrics = await second.train(ITEMS)
    assert len(second.history) == 7
    assert metrics == whole.train_metrics
    assert read_run(tmp_path / "cut").metrics == read_run(tmp_path / "whole").metrics
    with pytest.raises(DataError, match="learned from other data"):
        await sft(epochs=4, batch_size=3, output_dir=tmp_path / "cut", resume=True).train(NOISE)


async def test_validation_keeps_the_best_model_and_not_the_last(tmp_path: Path) -> None:
    trainer = sft(dataset=ITEMS, eval_dataset=NOISE, eval_every=1, epochs=12, output_dir=tmp_path)
    await trainer.train()
    measured = [row["eval/loss"] for row in trainer.history]
    assert min(measured) < measured[-1], "it gets worse at what it does not learn"
    best = sft(model=str(tmp_path / "best"))
    assert (await best.evaluate(NOISE)).loss == pytest.approx(min(measured), rel=1e-5)


async def test_evaluation_is_in_nats_a_token() -> None:
    metrics = await sft().evaluate(ITEMS)
    assert metrics.loss == pytest.approx(math.log(259), rel=0.05), "untrained: all bytes alike"
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics.loss or 0.0))
    with pytest.raises(DataError, match="nothing to evaluate on"):
        await sft().evaluate()


async def test_an_item_too_long_for_the_context_is_never_silent() -> None:
    long = TrajectoryItem(state="x" * 4300, action="y")
    with pytest.raises(DataError, match="the prompt of item 1 has"):
        await sft(epochs=1).train([ITEMS[0], long])
    dropping = sft(epochs=1, on_long_prompt="drop", batch_size=1)
    await dropping.train([ITEMS[0], long])
    assert len(dropping.history) == 1
    answer_too_long = TrajectoryItem(state="x", action="y" * 4300)
    cutting = sft(epochs=1, on_long_prompt="truncate-left", batch_size=1)
    await cutting.train([ITEMS[0], long, answer_too_long])
    assert len(cutting.history) == 2


async def test_adapters_learn_too_and_are_saved_in_pefts_format(tmp_path: Path) -> None:
    trainer = sft(lora_rank=8, learning_rate=1e-2, epochs=20)
    before = (await trainer.evaluate(ITEMS)).loss
    await trainer.train(captured(ITEMS))
    after = (await trainer.evaluate(ITEMS)).loss
    assert before is not None
    assert after is not None
    assert after < 0.8 * before
    folder = await trainer.save(tmp_path / "adapter")
    described = json.loads((folder / "adapter_config.json").read_text())
    assert described["peft_type"] == "LORA"
    loaded = sft(model=str(folder))
    assert (await loaded.evaluate(ITEMS)).loss == pytest.approx(after, rel=1e-5)


def captured(items: list[TrajectoryItem]) -> TrajectoryDataset:
    dataset = TrajectoryDataset()
    dataset.extend(items)
    return dataset


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_reward must be a finite number"):
        SFTConfig(min_reward=math.nan)
    with pytest.raises(ConfigError, match="reward_weighted must be True or False"):
        SFTConfig(reward_weighted=1)  # type: ignore[arg-type] # on purpose


async def test_a_resumed_run_keeps_the_dtype_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {"output_dir": tmp_path / "run", "save_every": 1, "epochs": 3}
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: 3.0)
    first = sft(**kept, max_seconds=1e-9)
    await first.train(ITEMS)
    assert first.history[-1]["step"] == 1
    assert read_run(tmp_path / "run").config["dtype"] == "bfloat16"
    on = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert on["dtype"] == "bfloat16"
    assert "3.0 times as fast" in on["dtype_reason"]
    assert on["processor"] == arithmetic.processor().name

    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: 0.2)  # on another machine
    again = sft(**kept, resume=True)
    await again.train(ITEMS)
    assert (await again.policy()).dtype == "bfloat16"
    with pytest.raises(ConfigError, match="dtype is 'bfloat16' there and 'float32' here"):
        await sft(**kept, resume=True, dtype="float32").train(ITEMS)
    fresh = sft(output_dir=tmp_path / "fresh", resume=True, epochs=1)
    await fresh.train(ITEMS)
    assert (await fresh.policy()).dtype == "float32"
