"""Those for whom the files are written take them: TRL trains a step on each form, datasets reads.

On the tiny model, whose template knows tools and calls.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbiter.train import TrajectoryItem
from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer
from orbiter.train.formats import from_dataset, read, to_dataset, to_preference_pairs, to_sft, write

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
OTHER = {"id": "c2", "type": "function", "function": {"name": "mul", "arguments": '{"b": "x"}'}}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "mul", "description": "times"}},
]
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL, OTHER]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4"}
ITEMS = [
    TrajectoryItem("1+1?", "2", 1.0),
    TrajectoryItem("1+1?", "3", 0.0),
    TrajectoryItem(
        "", "", 1.0, episode_id="e", step=0, messages=PROMPT, tools=TOOLS, tool_calls=[CALL, OTHER]
    ),
    TrajectoryItem("", "No.", 0.0, messages=PROMPT, tools=TOOLS),
    TrajectoryItem(
        "", "Four.", 1.0, {"reasoning": "read it"}, episode_id="e", step=1, tools=TOOLS,
        messages=[*PROMPT, CALLED, RESULT],
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def warnings_of_others() -> Iterator[None]:
    """What TRL and its libraries warn of is not for us to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def loaded(path: Path) -> Any:  # noqa: ANN401 - not typed, like all of datasets and TRL
    return datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache")
    )


def settings(config: Any, folder: Path, **more: object) -> Any:  # noqa: ANN401 - as above
    return config(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=2, use_cpu=True,
        report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        dataloader_pin_memory=False, gradient_checkpointing=False, bf16=False, **more,
    )  # fmt: skip


def trained(trainer: Any) -> bool:  # noqa: ANN401 - as above
    before = [weight.clone() for weight in trainer.model.parameters()]
    loss = trainer.train().training_loss
    moved = any(
        not old.equal(new) for old, new in zip(before, trainer.model.parameters(), strict=True)
    )
    return math.isfinite(loss) and moved


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trl-messages", "trl-prompt-completion", "openai-chat"])
def test_trl_imitates_a_file_of_ours(name: str, tiny: str, tmp_path: Path) -> None:
    write(ITEMS, tmp_path / "x.jsonl", name)
    trainer = trl.SFTTrainer(
        tiny,
        args=settings(trl.SFTConfig, tmp_path, max_length=512),
        train_dataset=loaded(tmp_path / "x.jsonl"),
        processing_class=tiny_tokenizer(),
    )
    assert trained(trainer)


@pytest.mark.slow
def test_trl_imitates_the_answers_alone(tiny: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(to_sft(ITEMS, min_reward=0.5), on_mixed_types="use_json")
    trainer = trl.SFTTrainer(
        tiny,
        args=settings(trl.SFTConfig, tmp_path, max_length=512),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    row = trainer.train_dataset[0]
    learned = [token for token in row["labels"] if token != -100]
    assert "2" in tiny_tokenizer().decode(learned)
    assert "1+1?" not in tiny_tokenizer().decode(learned)
    assert trained(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["file", "memory", "rows"])
def test_trl_prefers_by_our_pairs(source: str, tiny: str, tmp_path: Path) -> None:
    if source == "file":
        write(ITEMS, tmp_path / "x.jsonl", "trl-preference")
        pairs = loaded(tmp_path / "x.jsonl")
    elif source == "memory":
        pairs = to_dataset(ITEMS, "trl-preference")
    else:
        pairs = datasets.Dataset.from_list(to_preference_pairs(ITEMS), on_mixed_types="use_json")
    assert len(pairs) == 2
    trainer = trl.DPOTrainer(
        tiny,
        args=settings(trl.DPOConfig, tmp_path, max_length=512),
        train_dataset=pairs,
        processing_class=tiny_tokenizer(),
    )
    assert trained(trainer)


@pytest.mark.parametrize(
    "name", ["trl-messages", "trl-prompt-completion", "trl-preference", "sharegpt", "openai-chat"]
)
def test_load_dataset_reads_our_lines_and_we_read_what_it_read(name: str, tmp_path: Path) -> None:
    write(ITEMS, tmp_path / "x.jsonl", name)
    direct = [(item.action, item.tools) for item in read(tmp_path / "x.jsonl", name)]
    through = [(item.action, item.tools) for item in from_dataset(loaded(tmp_path / "x.jsonl"))]
    assert [action for action, _ in through] == [action for action, _ in direct]


def test_datasets_opens_our_folder_and_our_parquet(tmp_path: Path) -> None:
    write(ITEMS, tmp_path / "folder", "datasets")
    assert datasets.load_from_disk(str(tmp_path / "folder"))["action"][0] == "2"
    write(ITEMS, tmp_path / "x.parquet")
    table = datasets.Dataset.from_parquet(
        str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert table["reward"] == [item.reward for item in ITEMS]


def test_a_dataset_that_somebody_saved_is_read_split_by_split(tmp_path: Path) -> None:
    rows = [{"messages": [*PROMPT, {"role": "assistant", "content": "4"}], "source": "x"}]
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows)}
    )
    both.save_to_disk(str(tmp_path / "set"))
    assert [item.metadata for item in read(tmp_path / "set")] == [
        {"source": "x", "split": "train"},
        {"source": "x", "split": "test"},
    ]
    both["train"].to_parquet(str(tmp_path / "x.parquet"))
    (item,) = read(tmp_path / "x.parquet")
    assert (item.action, item.messages) == ("4", PROMPT)
