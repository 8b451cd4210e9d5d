"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from .drawing import balanced
from .heads import train_head
from .label_settings import FewLabels
from .labels import label_curve
from .pairing import PairLoader, train_hidden
from .pairs import Pairs, drawn_pairs, read_pairs

__all__ = [
    "FewLabels",
    "PairLoader",
    "Pairs",
    "balanced",
    "drawn_pairs",
    "label_curve",
    "read_pairs",
    "train_head",
    "train_hidden",
]
