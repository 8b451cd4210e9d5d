"""Modular workflows: store, test, reuse and rank parts; train with few labels; find the part that is weak."""

from .card import Card, Figure, ModelSpec, Quantity, Sample, Threshold
from .checking import figures_of
from .composing import Stitch, compose
from .expecting import Expectation, Measured, expect
from .files import AddressFiles, Files, LocalFiles
from .hub import HubFiles
from .rebuilding import StoredPart
from .rendering import markdown
from .store import Store

__all__ = [
    "AddressFiles",
    "Card",
    "Expectation",
    "Figure",
    "Files",
    "HubFiles",
    "LocalFiles",
    "Measured",
    "ModelSpec",
    "Quantity",
    "Sample",
    "Stitch",
    "Store",
    "StoredPart",
    "Threshold",
    "compose",
    "expect",
    "figures_of",
    "markdown",
]
