"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from . import transfer
from .features import AveragePool, collect
from .ranking import Scored, rank, rank_store, score_part

__all__ = [
    "AveragePool",
    "Scored",
    "collect",
    "rank",
    "rank_store",
    "score_part",
    "transfer",
]
