"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from . import transfer
from .baselines import parameter_count, source_accuracy
from .features import AveragePool, collect
from .ranking import Scored, rank, rank_store, score_part
from .stitching import Stitched, stitching_loss

__all__ = [
    "AveragePool",
    "Scored",
    "Stitched",
    "collect",
    "parameter_count",
    "rank",
    "rank_store",
    "score_part",
    "source_accuracy",
    "stitching_loss",
    "transfer",
]
