"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from . import transfer
from .changing.averaging import PartAverages
from .changing.growing import Growth, grow
from .changing.one_part import train_part
from .changing.recalibrating import recalibrate
from .changing.swapping import swapped
from .inspection.diagnose import diagnose
from .inspection.findings import Advice, Finding, Kind, Thresholds, find
from .inspection.recording import Diagnosis, Record
from .inspection.states import Measures, PartState
from .inspection.twins import train_twin
from .labels.curve import label_curve
from .labels.drawing import balanced
from .labels.heads import train_head
from .labels.pairing import PairLoader, train_hidden
from .labels.pairs import Pairs, drawn_pairs, read_pairs
from .labels.settings import FewLabels
from .ranking.baselines import parameter_count, source_accuracy
from .ranking.features import AveragePool, collect
from .ranking.ranking import Scored, rank, rank_store, score_part
from .ranking.stitching import Stitched, stitching_loss
from .store.card import Card, Figure, ModelSpec, Quantity, Sample, Threshold
from .store.checking import figures_of
from .store.composing import Stitch, compose
from .store.expecting import Expectation, Measured, expect
from .store.files import AddressFiles, Files, LocalFiles
from .store.hub import HubFiles
from .store.rebuilding import StoredPart
from .store.rendering import markdown
from .store.store import Store

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
