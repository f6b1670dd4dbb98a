"""Tensors are touched by the engine's thread alone: two teams of OpenMP slow each other down."""

# ruff: noqa: ANN401 - the signature of torch, which has no types

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from orbiter.train.sft import SFTConfig, SFTTrainer
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer

ITEMS = [TrajectoryItem(state=f"Say {word}.", action=word, reward=1.0) for word in ("a", "b", "c")]
SMALL: dict[str, Any] = {
    "model": "tiny",
    "batch_size": 2,
    "max_response_length": 4,
    "eval_every": 1,
    "save_every": 1,
}


class Seen(TorchDispatchMode):
    """Notes every operation on tensors in the thread that entered it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def length(output: str) -> float:
    return (sum(output.encode("utf-8", "replace")) % 97) / 97


async def reward_learning(folder: Path, algorithm: VeRLAlgorithm) -> None:
    config = VeRLConfig(
        algorithm=algorithm,
        group_size=2,
        ppo_epochs=2,
        minibatch_size=2,
        output_dir=folder,
        **SMALL,
    )
    trainer = VeRLTrainer(config, [RewardSpec("length", 1.0, length)], eval_dataset=ITEMS)
    await trainer.train(ITEMS)
    await trainer.evaluate(ITEMS)
    await trainer.generate(["Say d."])
    await trainer.save(folder / "model")


async def imitation(folder: Path) -> None:
    config = SFTConfig(output_dir=folder, **SMALL)
    trainer = SFTTrainer(config, dataset=ITEMS, eval_dataset=ITEMS)
    await trainer.train()
    await trainer.evaluate(ITEMS)


@pytest.mark.parametrize(
    "learn",
    [
        lambda folder: reward_learning(folder, VeRLAlgorithm.GRPO),
        lambda folder: reward_learning(folder, VeRLAlgorithm.PPO),
        imitation,
    ],
    ids=["grpo", "ppo", "sft"],
)
async def test_no_tensor_is_touched_in_the_callers_thread(
    learn: Callable[[Path], Awaitable[None]], tmp_path: Path
) -> None:
    with Seen() as seen:
        await learn(tmp_path / "run")
    assert seen.operations == []
