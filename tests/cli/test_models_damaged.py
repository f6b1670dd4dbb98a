"""Every command that loads a model names what is damaged in it, and ends with the same code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orbiter.train.cli.exits import ExitCode
from orbiter.train.engine.models.load import load_model
from orbiter.train.errors import StorageError
from tests.cli.conftest import Run

WEIGHTS = "model/model.safetensors"


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(WEIGHTS)
    change(tensors)
    save_file(tensors, WEIGHTS, {"format": "pt"})


def larger_tokenizer() -> None:
    tokenizer: Any = load_model("model", device="cpu").tokenizer
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained("model")


DAMAGE: dict[str, tuple[Callable[[], object], str]] = {
    "truncated": (lambda: os.truncate(WEIGHTS, 500_000), "is truncated: tensor 'model."),
    "missing layers": (
        lambda: changed(lambda all: [all.pop(n) for n in [*all] if ".layers.1." in n]),
        "9 tensors are missing that config.json calls for",
    ),
    "Git LFS pointer": (
        lambda: Path(WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a Git LFS pointer",
    ),
    "NaN": (
        lambda: changed(lambda all: all["model.norm.weight"].fill_(float("nan"))),
        "tensor 'model.norm.weight' holds",
    ),
    "tokenizer": (larger_tokenizer, "token '<new>' has id 259"),
}
COMMANDS = {
    "train --dry-run": ["train", "-c", "config.toml", "--dry-run", "train.model=./model"],
    "train": ["train", "-c", "config.toml", "train.model=./model", "--out", "r"],
    "sft": ["sft", "-c", "config.toml", "sft.model=./model", "--out", "r"],
    "generate": ["generate", "--model", "./model", "hi"],
    "eval": ["eval", "-c", "config.toml", "--model", "./model"],
    "serve": ["serve", "./model", "--port", "0"],
}
SEES_VALUES = COMMANDS.keys() - {"train --dry-run"}
"""A plan does not read the values of the weights."""


@pytest.fixture
def model(project: Path) -> Path:
    loaded = load_model("tiny", device="cpu")
    loaded.model.save_pretrained("model")
    loaded.tokenizer.save_pretrained("model")
    return project / "model"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_ends_every_command(
    run: Run, model: Path, command: str, damage: str
) -> None:
    act, message = DAMAGE[damage]
    act()
    if damage == "NaN" and command not in SEES_VALUES:
        pytest.skip("a plan does not read the values of the weights")
    done = run(*COMMANDS[command])
    assert done.code == ExitCode.STORAGE
    assert message in done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.err
    assert not Path("r/metrics.jsonl").exists()


@pytest.mark.parametrize("damage", ["truncated", "Git LFS pointer"])
def test_a_damaged_model_is_not_uploaded(model: Path, damage: str) -> None:
    from orbiter.train.engine.models.export import push_to_hub

    DAMAGE[damage][0]()
    with pytest.raises(StorageError, match=DAMAGE[damage][1]):
        push_to_hub(model, "me/model")
