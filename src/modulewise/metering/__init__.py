"""Honest figures: peak bytes and seconds of any training step, whatever trains it."""

from .ledger import Category, MemoryReport
from .memory import MemoryMeter, measure_step, saved_bytes
from .timing import Timing, interleaved_seconds, ratio, step_seconds

__all__ = [
    "Category",
    "MemoryMeter",
    "MemoryReport",
    "Timing",
    "interleaved_seconds",
    "measure_step",
    "ratio",
    "saved_bytes",
    "step_seconds",
]
