"""Human feedback: people label answers on a page, and their labels become training data."""

from orbiter.train.labelling.merge import Merged, labelled_items, labelled_pairs, merge
from orbiter.train.labelling.server import LabelServer, serve_labels
from orbiter.train.labelling.session import LabelSession
from orbiter.train.labelling.units import Unit, make_units

__all__ = [
    "LabelServer",
    "LabelSession",
    "Merged",
    "Unit",
    "labelled_items",
    "labelled_pairs",
    "make_units",
    "merge",
    "serve_labels",
]
