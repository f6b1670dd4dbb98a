"""Synthesises new data, curates it and splits it without leaks."""

from orbiter.train.synthesis.augment.augment import augment_add_noise, augment_swap_io
from orbiter.train.synthesis.augment.noise import NoiseOp
from orbiter.train.synthesis.curate import deduplicate, filter_by_score
from orbiter.train.synthesis.llm.judge import Judge
from orbiter.train.synthesis.llm.synthesisers import BackTranslate, Evolve, Respond, SelfInstruct
from orbiter.train.synthesis.pipeline.asking import Verdict
from orbiter.train.synthesis.pipeline.config import SynthesisConfig
from orbiter.train.synthesis.pipeline.pipeline import SynthesisPipeline
from orbiter.train.synthesis.pipeline.result import Rejection, SynthesisResult
from orbiter.train.synthesis.report import CurationReport, Dropped
from orbiter.train.synthesis.similarity import Match, NearDuplicateIndex
from orbiter.train.synthesis.split import SplitReport, split_dataset
from orbiter.train.synthesis.synthesiser import DataSynthesiser, SynthesisContext
from orbiter.train.synthesis.template import TemplateSynthesiser

__all__ = [
    "BackTranslate",
    "CurationReport",
    "DataSynthesiser",
    "Dropped",
    "Evolve",
    "Judge",
    "Match",
    "NearDuplicateIndex",
    "NoiseOp",
    "Rejection",
    "Respond",
    "SelfInstruct",
    "SplitReport",
    "SynthesisConfig",
    "SynthesisContext",
    "SynthesisPipeline",
    "SynthesisResult",
    "TemplateSynthesiser",
    "Verdict",
    "augment_add_noise",
    "augment_swap_io",
    "deduplicate",
    "filter_by_score",
    "split_dataset",
]
