"""Finds near-duplicate texts: exactly, fast, all at once or batch by batch."""

from orbiter.train.synthesis.similarity.index import NearDuplicateIndex
from orbiter.train.synthesis.similarity.join import crossing, near_duplicates, ties
from orbiter.train.synthesis.similarity.measure import Match, Measure

__all__ = ["Match", "Measure", "NearDuplicateIndex", "crossing", "near_duplicates", "ties"]
