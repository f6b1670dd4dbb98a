from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orbiter.train import (
    ConfigError,
    DataError,
    PreferenceConfig,
    PreferenceMethod,
    PreferenceTrainer,
    StorageError,
    TrajectoryItem,
)
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import Policy
from orbiter.train.engine.prompt import render
from orbiter.train.engine.turn_end import render_action
from orbiter.train.formats.preference import preference_pairs
from orbiter.train.preference.pairs import make_pairs
from orbiter.train.report import write_report
from orbiter.train.runlog import read_run
from tests.offline.logging import logged, tiny_policy
from tests.preference import by_hand

WORDS = ("red", "oak", "cat", "gold", "iron", "blue")
ITEMS = [
    TrajectoryItem(f"What is {word}?", answer, reward)
    for word in WORDS
    for answer, reward in ((f"{word} is nice", 1.0), (f"bad {word}", 0.0))
]
TRAIN, HELD_OUT = ITEMS[:8], ITEMS[8:]
METHODS = list(PreferenceMethod)


def prefer(*, eval_dataset: object = None, **settings: Any) -> PreferenceTrainer:  # noqa: ANN401 - PreferenceConfig's
    small: dict[str, Any] = {
        "model": "tiny",
        "epochs": 3,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "max_response_length": 8,
    }
    return PreferenceTrainer(PreferenceConfig(**(small | settings)), eval_dataset=eval_dataset)


def weights(policy: Policy) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in policy.named_trainable().values()]


def logprob_by_hand(item: TrajectoryItem, model: Any, tokenizer: Any) -> float:  # noqa: ANN401 - transformers' types
    """Return the summed log probability of an answer by Hugging Face's own forward pass."""
    prompt, answer = render(tokenizer, item), render_action(tokenizer, item)
    token_ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = model(token_ids).logits
    of_tokens = logits[0, :-1].log_softmax(-1).gather(1, token_ids[0, 1:, None])[:, 0]
    return float(of_tokens[len(prompt) - 1 :].double().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora_rank", [0, 4])
async def test_training_ranks_the_better_answers_higher_on_held_out_pairs_too(
    method: str, lora_rank: int
) -> None:
    rate = 1e-2 if lora_rank else 1e-3
    trainer = prefer(method=method, lora_rank=lora_rank, learning_rate=rate, epochs=8)
    before = await trainer.evaluate(HELD_OUT)
    await trainer.train(TRAIN)
    after = await trainer.evaluate(HELD_OUT)
    assert after["margin"] > before["margin"] + 0.005
    assert after["margin_low"] > before["margin"]
    assert before.loss is not None
    assert after.loss is not None
    assert after.loss < before.loss
    if method == "kto":
        assert after["accuracy"] >= 0.5
    else:
        assert after["accuracy"] == 1.0
        assert after["accuracy_low"] == pytest.approx(0.025**0.5), "exact, of two pairs of two"
    assert trainer.method == method.upper()


async def test_the_first_loss_is_that_of_the_papers_and_the_reference_stays() -> None:
    """A trained policy's loss by hand: its log probabilities against those of the first model."""
    trainer = prefer(method="dpo", beta=0.5, label_smoothing=0.1)
    await trainer.train(TRAIN)
    policy, fresh = await trainer.policy(), load_model("tiny")
    by_hand_losses = []
    for good, bad in zip(HELD_OUT[::2], HELD_OUT[1::2], strict=True):
        pi = tuple(logprob_by_hand(x, policy.model, policy.tokenizer) for x in (good, bad))
        ref = tuple(logprob_by_hand(x, fresh.model, fresh.tokenizer) for x in (good, bad))
        by_hand_losses.append(by_hand.dpo(pi, ref, 0.5, 0.1))  # type: ignore[arg-type]
    measured = await trainer.evaluate(HELD_OUT)
    assert measured.loss == pytest.approx(sum(by_hand_losses) / 2, rel=1e-4)


async def test_the_loss_of_kto_is_the_papers_with_the_divergence_on_answers_to_other_prompts() -> (
    None
):
    """By hand: each prompt is followed by the answer to the next task's prompt, and by its own."""
    trainer = prefer(method="kto", beta=0.5, epochs=6)
    await trainer.train(TRAIN)
    policy, fresh = await trainer.policy(), load_model("tiny")

    def ratio(item: TrajectoryItem) -> float:
        now, then = (logprob_by_hand(item, m.model, m.tokenizer) for m in (policy, fresh))
        return now - then

    others = [HELD_OUT[2], HELD_OUT[2], HELD_OUT[0], HELD_OUT[0]]
    mismatched = [
        replace(item, action=other.action) for item, other in zip(HELD_OUT, others, strict=True)
    ]
    kl = sum(map(ratio, mismatched)) / len(HELD_OUT)
    assert kl > 0.05, "else it is raised to 0, and nothing depends on it"
    losses = [by_hand.kto(ratio(item), item.reward == 1.0, kl, 0.5, 1.0) for item in HELD_OUT]
    measured = await trainer.evaluate(HELD_OUT)
    assert measured.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


async def test_the_reference_of_adapters_is_the_model_without_them() -> None:
    full, adapted = prefer(epochs=1), prefer(epochs=1, lora_rank=4, learning_rate=1e-2)
    for trainer in (full, adapted):
        await trainer.train(TRAIN)
        await trainer.evaluate(HELD_OUT)
    assert full._reference is not None
    assert adapted._reference is not None
    first, second = full._reference._known, adapted._reference._known
    assert first.keys() == second.keys()
    assert len(first) == len(ITEMS)
    for digest, number in first.items():
        assert second[digest] == pytest.approx(number, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
async def test_micro_batches_change_no_result(method: str) -> None:
    whole, cut = (
        prefer(method=method, epochs=1, batch_size=4, micro_batch_tokens=tokens)
        for tokens in (4096, 1)
    )
    for trainer in (whole, cut):
        await trainer.train(TRAIN)
    # Not the accuracy: before the first update all margins are 0, but for rounding.
    for name in ("loss", "margin", "grad_norm"):
        assert cut.history[0][name] == pytest.approx(whole.history[0][name], rel=1e-3, abs=1e-6)
    pairs = zip(weights(await whole.policy()), weights(await cut.policy()), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-4


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
@pytest.mark.parametrize("lora_rank", [0, 4])
async def test_a_resumed_run_ends_as_one_that_was_never_interrupted(
    method: str, lora_rank: int, tmp_path: Path
) -> None:
    common: dict[str, Any] = {
        "method": method, "lora_rank": lora_rank, "save_every": 1, "eval_every": 2,
        "eval_dataset": HELD_OUT,
    }  # fmt: skip
    whole = prefer(output_dir=tmp_path / "whole", **common)
    await whole.train(TRAIN)
    cut = prefer(output_dir=tmp_path / "cut", max_seconds=1e-9, **common)
    await cut.train(TRAIN)
    assert cut.history[-1]["step"] == 1
    again = prefer(output_dir=tmp_path / "cut", resume=True, **common)
    await again.train(TRAIN)
    pairs = zip(weights(await whole.policy()), weights(await again.policy()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert (tmp_path / "cut" / "best").is_dir()


async def test_the_reference_is_computed_once_and_kept_in_the_run_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    common: dict[str, Any] = {"save_every": 1, "output_dir": tmp_path}
    await prefer(max_seconds=1e-9, **common).train(TRAIN)
    file = tmp_path / "reference.jsonl"
    kept = file.read_bytes()
    assert len(kept.splitlines()) == 1 + len(TRAIN)
    assert caplog.text.count("answers are scored once") == 1
    await prefer(resume=True, **common).train(TRAIN)
    assert file.read_bytes() == kept
    assert caplog.text.count("answers are scored once") == 1


async def test_another_reference_in_the_run_folder_is_refused(tmp_path: Path) -> None:
    common: dict[str, Any] = {"save_every": 1, "output_dir": tmp_path}
    await prefer(max_seconds=1e-9, **common).train(TRAIN)
    file = tmp_path / "reference.jsonl"
    kept = file.read_bytes()
    file.write_bytes(kept.replace(b'"logprob": -', b'"logprob": -1', 1))
    with pytest.raises(StorageError, match=r"reference\.jsonl:2 is not a record as it was written"):
        await prefer(resume=True, **common).train(TRAIN)
    header = json.loads(kept.splitlines()[0])
    header.pop("_crc")
    file.write_text(json.dumps(header | {"weights": "other"}) + "\n")
    with pytest.raises(StorageError, match="another reference: its weights was 'other'"):
        await prefer(resume=True, **common).train(TRAIN)


async def test_a_second_training_keeps_the_first_models_reference() -> None:
    trainer = prefer(epochs=1)
    await trainer.train(TRAIN)
    once = await trainer.evaluate(TRAIN)
    await trainer.train(TRAIN)
    assert (await trainer.evaluate(TRAIN))["margin"] > 1.3 * once["margin"]


async def test_captured_episodes_are_learned_from_token_by_token() -> None:
    items = logged(tiny_policy(), attempts=4)
    trainer = prefer(epochs=6, batch_size=4)
    metrics = await trainer.train(items)
    assert metrics.accuracy is not None
    sampled = [
        len(item.token_ids or ())
        for pair in make_pairs(items).pairs
        for side in pair.sides
        for item in side.items
    ]
    assert len(sampled) >= 8
    assert trainer.history[0]["tokens"] == sum(sampled)
    after = await trainer.evaluate(items)
    assert after["margin"] > 0.1


async def test_pairs_made_by_preference_pairs_are_a_data_set() -> None:
    pairs = list(preference_pairs(TRAIN))
    trainer = prefer(epochs=1, eval_dataset=list(preference_pairs(HELD_OUT)))
    plan = await trainer.plan(iter(pairs))
    assert (plan.items, plan.held_out, plan.steps) == (4, 2, 2)
    await trainer.train()
    assert len(trainer.history) == 2
    same = prefer(epochs=1)
    await same.train(TRAIN)
    assert same.history[0]["loss"] == trainer.history[0]["loss"]


async def test_the_plan_counts_a_shared_prompt_once() -> None:
    plan = await prefer().plan(TRAIN)
    assert (plan.method, plan.items, plan.steps) == ("DPO", 4, 6)
    tokenizer = load_model("tiny").tokenizer
    prompts = [len(render(tokenizer, item)) for item in TRAIN[::2]]
    answers = [len(render_action(tokenizer, item)) for item in TRAIN]
    assert plan.tokens == 3 * (sum(prompts) + sum(answers))
    of_kto = await prefer(method="kto").plan(TRAIN)
    assert (of_kto.items, of_kto.steps) == (8, 12)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "ppo"}, "method must be one of"),
        ({"beta": 0}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be below 0.5"),
        ({"label_smoothing": 0.1, "method": "ipo"}, "has no effect with method='ipo', only with"),
        ({"simpo_gamma": 0.3}, "simpo_gamma=0.3 has no effect with method='dpo'"),
        ({"desirable_weight": 2.0}, "only with 'kto'"),
        ({"min_margin": 0.3, "method": "kto"}, "min_margin has no effect with method='kto'"),
        ({"pairs_per_task": 0}, "pairs_per_task must be at least 1"),
        ({"compare": "turn"}, "compare must be one of"),
        (
            {"desirable_weight": 0, "undesirable_weight": 0, "method": "kto"},
            "must not both be 0",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PreferenceConfig(**settings)


@pytest.mark.parametrize(
    ("method", "items", "said"),
    [
        ("dpo", TRAIN[:1], "no pair of a better and a worse answer"),
        ("dpo", [replace(item, reward=1.0) for item in TRAIN], "all have the same reward"),
        ("kto", [replace(item, reward=1.0) for item in TRAIN], "all 8 are good"),
        ("kto", [replace(item, reward=0.2) for item in TRAIN], "all 8 are bad"),
        ("kto", [replace(item, reward=None) for item in TRAIN], "no answer has a verdict"),
        ("kto", TRAIN[:2], "all 2 answers are to the same prompt"),
    ],
)
async def test_data_that_teach_nothing_are_refused(
    method: str, items: Sequence[TrajectoryItem], said: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        await prefer(method=method).train(items)


async def test_the_reference_point_of_kto_rises_with_the_divergence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = prefer(method="kto", epochs=6, batch_size=4)
    await trainer.train([*TRAIN, TrajectoryItem("What?", "more", 1.0)])
    kl = [row["kl"] for row in trainer.history]
    assert kl[0] == pytest.approx(0.0, abs=1e-4)
    assert kl[-1] > 0.1
    assert "5 good and 4 bad answers" not in caplog.text, "1.25 is in the advised range"


async def test_a_run_stops_while_the_reference_is_computed(tmp_path: Path) -> None:
    trainer = prefer(output_dir=tmp_path, epochs=100)
    running = asyncio.create_task(trainer.train(TRAIN))
    while not trainer.training:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)
    trainer.stop()
    await running
    assert trainer.stopped
    assert len(trainer.history) <= 1


async def test_a_run_leaves_a_folder_and_a_page(tmp_path: Path) -> None:
    trainer = prefer(output_dir=tmp_path, eval_dataset=HELD_OUT, eval_every=2, save_every=2)
    await trainer.train(TRAIN)
    run = read_run(tmp_path)
    assert run.config["method"] == "dpo"
    assert {"accuracy", "margin", "eval/accuracy", "eval/accuracy_low"} <= run.metrics[1].keys()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert '"kind":"DPO"' in page.replace(" ", "")
    assert "validation accuracy" in page
    await trainer.save(tmp_path / "model")
    assert "DPO" in (tmp_path / "model" / "README.md").read_text()


def test_the_command_line_learns_from_a_preference_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orbiter.train.cli.app import main

    rows = [
        {"prompt": good.state, "chosen": good.action, "rejected": bad.action}
        for good, bad in zip(TRAIN[::2], TRAIN[1::2], strict=True)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prefer", f"data.train={file}", "prefer.model=tiny", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--dry-run", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["plan"]["items"] == 4
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "prefer"
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    with pytest.raises(SystemExit) as ended:
        main(["runs", "resume", str(tmp_path / "run"), "--json"])
    assert ended.value.code == 0
