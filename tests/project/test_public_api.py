"""The front door: the guide's names, as the guide spells them, and modules where it puts them."""

import ast
import importlib
import inspect

import pytest

import orbiter.train

GUIDE = {
    "TrajectoryItem", "TrajectoryDataset", "TrajectoryStrategy", "DefaultStrategy",
    "TrainConfig", "Trainer", "TrainerState", "TrainMetrics",
    "SynthesisConfig", "SynthesisPipeline", "DataSynthesiser", "TemplateSynthesiser",
    "EvolutionConfig", "EvolutionPipeline", "EvolutionStrategy", "EvolutionPhase",
    "VeRLConfig", "VeRLTrainer", "VeRLAlgorithm", "RewardSpec",
    "augment_add_noise", "augment_swap_io", "filter_by_score", "deduplicate", "split_dataset",
}  # fmt: skip


def test_all_25_names_of_the_guide_are_exported() -> None:
    assert len(GUIDE) == 25
    assert set(orbiter.train.__all__) >= GUIDE


def test_what_all_names_is_there_documented_and_sorted() -> None:
    names = orbiter.train.__all__
    assert sorted(names, key=str.casefold) == sorted(set(names), key=str.casefold)
    for name in names:
        assert getattr(orbiter.train, name).__doc__, name


@pytest.mark.parametrize("name", ["trajectory", "synthesis", "evolution", "trainer", "verl"])
def test_the_modules_of_the_guide_can_be_imported(name: str) -> None:
    module = importlib.import_module(f"orbiter.train.{name}")
    assert module.__doc__


def test_the_enumerations_have_the_guides_values() -> None:
    assert [state.name for state in orbiter.train.TrainerState] == [
        "CREATED", "VALIDATING", "VALIDATED", "TRAINING", "TRAINED", "EVALUATING", "COMPLETE",
        "ERROR",
    ]  # fmt: skip
    assert [phase.name for phase in orbiter.train.EvolutionPhase] == [
        "INIT", "EVALUATING", "SELECTING", "MUTATING", "COMPLETE",
    ]  # fmt: skip
    named = {a.name: a.value for a in orbiter.train.VeRLAlgorithm}
    assert named.items() >= {"PPO": "ppo", "GRPO": "grpo"}.items()


def test_every_name_comes_from_the_home_that_the_type_checker_reads() -> None:
    tree = ast.parse(inspect.getsource(orbiter.train))
    written = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orbiter.")
        for alias in node.names
    }
    assert set(written) == set(orbiter.train.__all__) == set(orbiter.train._HOME_OF)
    for name, module in written.items():
        assert module == f"orbiter.train.{orbiter.train._HOME_OF[name]}"
        assert name in dir(orbiter.train)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TrajectoryDatset'"):
        _ = orbiter.train.TrajectoryDatset  # type: ignore[attr-defined] # the fault itself
