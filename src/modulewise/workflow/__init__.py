"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from .averaging import PartAverages
from .card import Card, Figure, ModelSpec, Quantity, Sample, Threshold
from .checking import figures_of
from .composing import Stitch, compose
from .diagnose import diagnose
from .expecting import Expectation, Measured, expect
from .files import AddressFiles, Files, LocalFiles
from .findings import Advice, Finding, Kind, Thresholds, find
from .growing import Growth, grow
from .hub import HubFiles
from .one_part import train_part
from .rebuilding import StoredPart
from .recalibrating import recalibrate
from .recording import Diagnosis, Record
from .rendering import markdown
from .states import Measures, PartState
from .store import Store
from .swapping import swapped
from .twins import train_twin

__all__ = [
    "AddressFiles",
    "Advice",
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
    "Stitch",
    "Store",
    "StoredPart",
    "Threshold",
    "Thresholds",
    "compose",
    "diagnose",
    "expect",
    "figures_of",
    "find",
    "grow",
    "markdown",
    "recalibrate",
    "swapped",
    "train_part",
    "train_twin",
]
