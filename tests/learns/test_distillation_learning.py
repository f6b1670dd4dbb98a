"""Does a student learn its teacher's skill from its own samples, without any reward?

The teacher has learned to answer a letter with the next one. The student knows nothing; a reward of
weight 0 only measures it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from orbiter.train.engine.batch import collate
from orbiter.train.engine.models.tiny import tiny_tokenizer
from orbiter.train.engine.objective import ImitationObjective
from orbiter.train.engine.optimiser import make_optimiser
from orbiter.train.engine.policy import make_policy
from orbiter.train.engine.prompt import render
from orbiter.train.engine.rollout import given
from orbiter.train.engine.thread import work
from orbiter.train.engine.turn_end import render_action
from orbiter.train.engine.update import update
from orbiter.train.trajectory import TrajectoryItem
from orbiter.train.verl import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer
from tests.verl.teachers import save, wider_model

ITEMS = [TrajectoryItem(letter, chr(ord(letter) + 1)) for letter in "abcdef"]


def solved(output: str, item: TrajectoryItem) -> float:
    return float(output == item.action)


def teach(folder: Path, seed: int) -> Path:
    """Save a teacher that answers every item right."""
    tokenizer = tiny_tokenizer()
    teacher = make_policy(wider_model(seed), tokenizer, device="cpu")
    optimiser = make_optimiser(teacher, learning_rate=1e-3, weight_decay=0.0)
    batch = collate([given(render(tokenizer, i), render_action(tokenizer, i)) for i in ITEMS])
    for _ in range(300):
        if update(teacher, batch, optimiser, ImitationObjective())["nll"] < 0.01:
            return save(teacher.model, folder)
    raise AssertionError("the teacher did not learn")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
async def test_a_student_learns_its_teachers_skill_from_its_own_samples(
    tmp_path: Path, seed: int
) -> None:
    teacher = await work(teach, tmp_path / "teacher", seed)
    config = VeRLConfig(
        algorithm=VeRLAlgorithm.DISTILL,
        model="tiny",
        teacher=str(teacher),
        distill_beta=0.5,
        device="cpu",
        dtype="float32",
        epochs=80,
        batch_size=6,
        group_size=4,
        learning_rate=2e-3,
        max_response_length=2,
        seed=seed,
        progress=False,
    )
    trainer = VeRLTrainer(config, [RewardSpec("solved", 0.0, solved)])
    before = await trainer.evaluate(ITEMS)
    await trainer.train(ITEMS)
    after = await trainer.evaluate(ITEMS)
    assert before.extra["reward/solved"] < 0.2
    assert after.extra["reward/solved"] > 0.8
    assert after.extra["divergence"] < 0.2 * before.extra["divergence"]
