"""The best validated weights of a run on verl outlive their checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orbiter.train.verl import VeRLConfig
from orbiter.train.verl.cluster.best import best_of, keep_best
from orbiter.train.verl.cluster.follow import episode_evaluation
from orbiter.train.verl.cluster.layout import Layout
from orbiter.train.verl.cluster.overrides import checkpoint_frequency

LAYOUT = Layout(folder=Path("/run"), model="m", prompts=8, longest_prompt=9, validates=True)


def saved(layout: Layout, step: int) -> Path:
    actor = layout.checkpoints / f"global_step_{step}" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    for name in ("model_world_size_1_rank_0.pt", "optim_world_size_1_rank_0.pt"):
        (actor / name).write_text(f"step {step}")
    (actor / "huggingface/config.json").write_text("{}")
    return actor


def test_only_a_better_validation_replaces_the_best(tmp_path: Path) -> None:
    layout = replace(LAYOUT, folder=tmp_path)
    assert best_of(layout) is None
    kept = []
    for step, reward in ((2, 0.3), (4, 0.5), (6, 0.5), (8, 0.4)):
        actor = saved(layout, step)
        kept.append(keep_best(layout, step, reward))
        shutil.rmtree(actor)
    assert kept == [True, True, False, False]
    assert best_of(layout) == (4, 0.5)
    weights = layout.best / "actor/model_world_size_1_rank_0.pt"
    assert weights.read_text() == "step 4", "although verl has removed the checkpoint"
    assert (layout.best / "actor/huggingface/config.json").is_file()
    assert not list(layout.best.rglob("optim_*")), "a merged model needs no optimiser"


def test_a_validated_step_without_a_checkpoint_keeps_what_there_is(tmp_path: Path) -> None:
    layout = replace(LAYOUT, folder=tmp_path)
    assert not keep_best(layout, 2, 0.3)
    saved(layout, 4)
    assert keep_best(layout, 4, 0.1)
    assert not keep_best(layout, 6, 0.9)
    assert best_of(layout) == (4, 0.1)


def test_a_kept_copy_does_not_need_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    layout = replace(LAYOUT, folder=tmp_path)
    saved(layout, 2)
    assert keep_best(layout, 2, 0.3)
    assert (layout.best / "actor/model_world_size_1_rank_0.pt").read_text() == "step 2"


@pytest.mark.parametrize(
    ("settings", "validates", "steps"),
    [
        ({"output_dir": "o", "eval_every": 4}, True, 4),
        ({"output_dir": "o", "eval_every": 4, "save_every": 6}, True, 2),
        ({"output_dir": "o", "eval_every": 4, "save_every": 6}, False, 6),
        ({"eval_every": 4}, True, 0),
        ({"output_dir": "o", "save_every": 6}, True, 6),
    ],
)
def test_a_validated_step_has_a_checkpoint(
    settings: dict[str, int], validates: bool, steps: int
) -> None:
    config = VeRLConfig(backend="verl", device="cpu", **settings)  # type: ignore[arg-type]
    assert checkpoint_frequency(config, replace(LAYOUT, validates=validates)) == steps


def test_an_episodes_evaluation_has_our_names(tmp_path: Path) -> None:
    assert episode_evaluation(tmp_path, 3) == {}
    file = tmp_path / "evaluation-3.json"
    file.write_text('{"episode/reward": 0.5, "episode/failed": 0.0, "reward/vowels": 0.25}')
    assert episode_evaluation(tmp_path, 3) == {
        "eval/reward": 0.5,
        "eval/failed": 0.0,
        "eval/reward/vowels": 0.25,
    }
