"""Honest figures: peak bytes and seconds of any training step, whatever trains it."""

from .ledger import Category, MemoryReport
from .memory import MemoryMeter, measure_step
from .operations import counted_flops
from .saved import saved_bytes
from .timing import Timing, interleaved_seconds, ratio, step_seconds
from .weightless import shapes, weightless

__all__ = [
    "Category",
    "MemoryMeter",
    "MemoryReport",
    "Timing",
    "counted_flops",
    "interleaved_seconds",
    "measure_step",
    "ratio",
    "saved_bytes",
    "shapes",
    "step_seconds",
    "weightless",
]
