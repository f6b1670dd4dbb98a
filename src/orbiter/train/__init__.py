"""From an agent's traces to a better agent: the names of the public guide, and nothing heavy.

Capture what an agent does, curate it, improve the words or the weights, evaluate. Importing this
loads no torch, no numpy and no model; what needs them loads them when it is called.
"""

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
