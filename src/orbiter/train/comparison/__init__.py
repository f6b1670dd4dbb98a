"""Whether a new model is better than the old one, and whether it may be shipped."""

from orbiter.train.comparison.compare import compare
from orbiter.train.comparison.contestant import EndpointContestant, LocalContestant, Outcome
from orbiter.train.comparison.requirement import Requirement, Verdict, parse_requirement
from orbiter.train.comparison.result import Comparison, Plan, Side, Slice

__all__ = [
    "Comparison",
    "EndpointContestant",
    "LocalContestant",
    "Outcome",
    "Plan",
    "Requirement",
    "Side",
    "Slice",
    "Verdict",
    "compare",
    "parse_requirement",
]
