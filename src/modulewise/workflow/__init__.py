"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from . import transfer
from .averaging import PartAverages
from .baselines import parameter_count, source_accuracy
from .card import Card, Figure, ModelSpec, Quantity, Sample, Threshold
from .checking import figures_of
from .composing import Stitch, compose
from .diagnose import diagnose
from .drawing import balanced
from .expecting import Expectation, Measured, expect
from .features import AveragePool, collect
from .files import AddressFiles, Files, LocalFiles
from .findings import Advice, Finding, Kind, Thresholds, find
from .growing import Growth, grow
from .heads import train_head
from .hub import HubFiles
from .label_settings import FewLabels
from .labels import label_curve
from .one_part import train_part
from .pairing import PairLoader, train_hidden
from .pairs import Pairs, drawn_pairs, read_pairs
from .ranking import Scored, rank, rank_store, score_part
from .rebuilding import StoredPart
from .recalibrating import recalibrate
from .recording import Diagnosis, Record
from .rendering import markdown
from .states import Measures, PartState
from .stitching import Stitched, stitching_loss
from .store import Store
from .swapping import swapped
from .twins import train_twin

__all__ = [
    "AddressFiles",
    "Advice",
    "AveragePool",
    "Card",
    "Diagnosis",
    "Expectation",
    "FewLabels",
    "Figure",
    "Files",
    "Finding",
    "Growth",
    "HubFiles",
    "Kind",
    "LocalFiles",
    "Measured",
    "Measures",
    "ModelSpec",
    "PairLoader",
    "Pairs",
    "PartAverages",
    "PartState",
    "Quantity",
    "Record",
    "Sample",
    "Scored",
    "Stitch",
    "Stitched",
    "Store",
    "StoredPart",
    "Threshold",
    "Thresholds",
    "balanced",
    "collect",
    "compose",
    "diagnose",
    "drawn_pairs",
    "expect",
    "figures_of",
    "find",
    "grow",
    "label_curve",
    "markdown",
    "parameter_count",
    "rank",
    "rank_store",
    "read_pairs",
    "recalibrate",
    "score_part",
    "source_accuracy",
    "stitching_loss",
    "swapped",
    "train_head",
    "train_hidden",
    "train_part",
    "train_twin",
    "transfer",
]
