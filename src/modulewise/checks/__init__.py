"""Audits: is a method as local as it says, and does it hold to the contracts."""

from .conformance import Check, conformance
from .locality import LocalityReport, locality
from .memory import memory
from .problems import Problem, example_problem, linear_problem

__all__ = [
    "Check",
    "LocalityReport",
    "Problem",
    "conformance",
    "example_problem",
    "linear_problem",
    "locality",
    "memory",
]
