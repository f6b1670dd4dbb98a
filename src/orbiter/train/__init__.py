"""Turn an agent's traces into a better agent; this module exports the public names.

The workflow: capture what an agent does, curate it, improve the prompt or the weights, evaluate. A
name is imported from its module on first use (PEP 562): all together take 0.1 s, which programs
that only capture need not wait for. None loads torch, numpy or a model before it is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orbiter.train.errors import (
        CallbackError,
        ConfigError,
        DataError,
        MissingExtraError,
        StateError,
        StorageError,
        TrainError,
        TrainingError,
    )
    from orbiter.train.evaluation import Interval, mean_interval, paired_difference, pass_at_k
    from orbiter.train.evolution import (
        EvolutionConfig,
        EvolutionPhase,
        EvolutionPipeline,
        EvolutionResult,
        EvolutionStrategy,
    )
    from orbiter.train.offline import OfflineConfig, OfflineMethod, OfflineTrainer
    from orbiter.train.preference import (
        PreferenceConfig,
        PreferenceMethod,
        PreferenceTrainer,
        RewardModel,
        RewardModelConfig,
        RewardModelTrainer,
    )
    from orbiter.train.runlog import RunLog, read_run
    from orbiter.train.sft import SFTConfig, SFTTrainer
    from orbiter.train.synthesis import (
        CurationReport,
        DataSynthesiser,
        SplitReport,
        SynthesisConfig,
        SynthesisPipeline,
        SynthesisResult,
        TemplateSynthesiser,
        augment_add_noise,
        augment_swap_io,
        deduplicate,
        filter_by_score,
        split_dataset,
    )
    from orbiter.train.trainer import TrainConfig, Trainer, TrainerState, TrainMetrics
    from orbiter.train.trajectory import (
        DefaultStrategy,
        TrajectoryDataset,
        TrajectoryItem,
        TrajectoryStrategy,
    )
    from orbiter.train.verl import RewardSpec, VeRLAlgorithm, VeRLConfig, VeRLTrainer

__all__ = [
    "CallbackError",
    "ConfigError",
    "CurationReport",
    "DataError",
    "DataSynthesiser",
    "DefaultStrategy",
    "EvolutionConfig",
    "EvolutionPhase",
    "EvolutionPipeline",
    "EvolutionResult",
    "EvolutionStrategy",
    "Interval",
    "MissingExtraError",
    "OfflineConfig",
    "OfflineMethod",
    "OfflineTrainer",
    "PreferenceConfig",
    "PreferenceMethod",
    "PreferenceTrainer",
    "RewardModel",
    "RewardModelConfig",
    "RewardModelTrainer",
    "RewardSpec",
    "RunLog",
    "SFTConfig",
    "SFTTrainer",
    "SplitReport",
    "StateError",
    "StorageError",
    "SynthesisConfig",
    "SynthesisPipeline",
    "SynthesisResult",
    "TemplateSynthesiser",
    "TrainConfig",
    "TrainError",
    "TrainMetrics",
    "Trainer",
    "TrainerState",
    "TrainingError",
    "TrajectoryDataset",
    "TrajectoryItem",
    "TrajectoryStrategy",
    "VeRLAlgorithm",
    "VeRLConfig",
    "VeRLTrainer",
    "augment_add_noise",
    "augment_swap_io",
    "deduplicate",
    "filter_by_score",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "read_run",
    "split_dataset",
]

_HOMES = {
    "errors": (
        "CallbackError",
        "ConfigError",
        "DataError",
        "MissingExtraError",
        "StateError",
        "StorageError",
        "TrainError",
        "TrainingError",
    ),
    "evaluation": (
        "Interval",
        "mean_interval",
        "paired_difference",
        "pass_at_k",
    ),
    "evolution": (
        "EvolutionConfig",
        "EvolutionPhase",
        "EvolutionPipeline",
        "EvolutionResult",
        "EvolutionStrategy",
    ),
    "offline": (
        "OfflineConfig",
        "OfflineMethod",
        "OfflineTrainer",
    ),
    "preference": (
        "PreferenceConfig",
        "PreferenceMethod",
        "PreferenceTrainer",
        "RewardModel",
        "RewardModelConfig",
        "RewardModelTrainer",
    ),
    "runlog": (
        "RunLog",
        "read_run",
    ),
    "sft": (
        "SFTConfig",
        "SFTTrainer",
    ),
    "synthesis": (
        "CurationReport",
        "DataSynthesiser",
        "SplitReport",
        "SynthesisConfig",
        "SynthesisPipeline",
        "SynthesisResult",
        "TemplateSynthesiser",
        "augment_add_noise",
        "augment_swap_io",
        "deduplicate",
        "filter_by_score",
        "split_dataset",
    ),
    "trainer": (
        "TrainConfig",
        "Trainer",
        "TrainerState",
        "TrainMetrics",
    ),
    "trajectory": (
        "DefaultStrategy",
        "TrajectoryDataset",
        "TrajectoryItem",
        "TrajectoryStrategy",
    ),
    "verl": (
        "RewardSpec",
        "VeRLAlgorithm",
        "VeRLConfig",
        "VeRLTrainer",
    ),
}

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # otherwise a type checker would accept misspelt names as public

    def __getattr__(name: str) -> object:
        """Import a public name from its module, once."""
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'orbiter.train' has no attribute {name!r}")
        value: object = getattr(import_module(f"orbiter.train.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
