"""Audits: is a method as local as it says, and does it hold to the contracts."""

from .alignment import AlignmentReport, PartAlignment, alignment
from .conformance import Check, conformance
from .converted import converted, feedback_angles
from .flops import flops
from .locality import LocalityReport, locality
from .locking import Unlocking, unlocking
from .memory import memory
from .problems import Problem, example_problem, linear_problem, recurrent_problem

__all__ = [
    "AlignmentReport",
    "Check",
    "LocalityReport",
    "PartAlignment",
    "Problem",
    "Unlocking",
    "alignment",
    "conformance",
    "converted",
    "example_problem",
    "feedback_angles",
    "flops",
    "linear_problem",
    "locality",
    "memory",
    "recurrent_problem",
    "unlocking",
]
