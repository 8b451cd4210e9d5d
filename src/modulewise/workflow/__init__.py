"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from .averaging import PartAverages
from .diagnose import diagnose
from .findings import Advice, Finding, Kind, Thresholds, find
from .growing import Growth, grow
from .one_part import train_part
from .recalibrating import recalibrate
from .recording import Diagnosis, Record
from .states import Measures, PartState
from .swapping import swapped
from .twins import train_twin

__all__ = [
    "Advice",
    "Diagnosis",
    "Finding",
    "Growth",
    "Kind",
    "Measures",
    "PartAverages",
    "PartState",
    "Record",
    "Thresholds",
    "diagnose",
    "find",
    "grow",
    "recalibrate",
    "swapped",
    "train_part",
    "train_twin",
]
