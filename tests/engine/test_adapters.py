"""An adapter's folder loads with Transformers and PEFT alone, by the code on its own card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orbiter.train import SFTConfig, SFTTrainer, TrajectoryItem
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.prompt import render

FIRST = [TrajectoryItem("say one", "one"), TrajectoryItem("say two", "two")]
SECOND = [TrajectoryItem("say three", "three")]
LORA: dict[str, Any] = {"lora_rank": 4, "learning_rate": 2e-2, "epochs": 10, "batch_size": 2}


async def adapted(model: str, items: list[TrajectoryItem], folder: Path) -> Tensor:
    """Train an adapter on a model, save it, and return the policy's logits on a prompt."""
    trainer = SFTTrainer(SFTConfig(model=model, **LORA))
    await trainer.train(items)
    await trainer.save(folder)
    policy = await trainer.policy()
    return logits(policy.model, policy.tokenizer)


@torch.no_grad()
def logits(model: Any, tokenizer: Any) -> Tensor:  # noqa: ANN401 - Hugging Face's
    prompt = torch.tensor([render(tokenizer, "say one")])
    scores: Tensor = model(prompt).logits[0]
    return scores


def by_the_card(folder: Path) -> Tensor:
    """Run the code of the model card and return the loaded model's logits."""
    card = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("this/folder", str(folder)), names)
    return logits(names["model"].eval(), names["tokenizer"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
async def test_an_adapter_of_a_built_in_model_needs_no_hub(tmp_path: Path) -> None:
    trained = await adapted("tiny", FIRST, tmp_path / "adapter")
    assert torch.allclose(by_the_card(tmp_path / "adapter"), trained, atol=1e-4)
    untrained = load_model("tiny")
    assert not torch.allclose(logits(untrained.model, untrained.tokenizer), trained, atol=0.1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
async def test_an_adapter_on_an_adapter_keeps_what_the_first_one_learned(tmp_path: Path) -> None:
    await adapted("tiny", FIRST, tmp_path / "first")
    trained = await adapted(str(tmp_path / "first"), SECOND, tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    shutil.move(tmp_path / "second", tmp_path / "moved")

    assert torch.allclose(by_the_card(tmp_path / "moved"), trained, atol=1e-4)
    loaded = load_model(str(tmp_path / "moved"))
    assert torch.allclose(logits(loaded.model, loaded.tokenizer), trained, atol=1e-4)

    base = load_model(str(tmp_path / "moved" / "base"))
    assert not torch.allclose(logits(base.model, base.tokenizer), trained, atol=0.1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
async def test_an_adapter_of_a_saved_model_names_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SFTTrainer(SFTConfig(model="tiny", epochs=2, learning_rate=1e-2))
    await whole.train(FIRST)
    await whole.save(tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    trained = await adapted("./whole", FIRST, tmp_path / "adapter")
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str((tmp_path / "whole").resolve())
    assert not (tmp_path / "adapter" / "base").exists(), "no second copy of the weights"
    monkeypatch.chdir("/")
    assert torch.allclose(by_the_card(tmp_path / "adapter"), trained, atol=1e-4)
