"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from . import transfer
from .averaging import PartAverages
from .baselines import parameter_count, source_accuracy
from .card import Card, Figure, ModelSpec, Quantity, Sample, Threshold
from .checking import figures_of
from .composing import Stitch, compose
from .diagnose import diagnose
from .expecting import Expectation, Measured, expect
from .features import AveragePool, collect
from .files import AddressFiles, Files, LocalFiles
from .findings import Advice, Finding, Kind, Thresholds, find
from .growing import Growth, grow
from .hub import HubFiles
from .one_part import train_part
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
    "collect",
    "compose",
    "diagnose",
    "expect",
    "figures_of",
    "find",
    "grow",
    "markdown",
    "parameter_count",
    "rank",
    "rank_store",
    "recalibrate",
    "score_part",
    "source_accuracy",
    "stitching_loss",
    "swapped",
    "train_part",
    "train_twin",
    "transfer",
]
