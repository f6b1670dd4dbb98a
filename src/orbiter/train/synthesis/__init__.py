"""Make more data, keep the good, split it without leaks."""

from orbiter.train.synthesis.curate import deduplicate, filter_by_score
from orbiter.train.synthesis.report import CurationReport, Dropped
from orbiter.train.synthesis.similarity import Match, NearDuplicateIndex
from orbiter.train.synthesis.split import SplitReport, split_dataset

__all__ = [
    "CurationReport",
    "Dropped",
    "Match",
    "NearDuplicateIndex",
    "SplitReport",
    "deduplicate",
    "filter_by_score",
    "split_dataset",
]
