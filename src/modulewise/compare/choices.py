"""What an experiment chooses among by a word."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Balancing", "Descent", "RateSchedule"]


class Descent(StrEnum):
    """Which optimiser."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"
    RMSPROP = "rmsprop"


class Balancing(StrEnum):
    """What automatic cuts make even."""

    MEMORY = "memory"
    RECOMPUTED_MEMORY = "recomputed-memory"
    TIME = "time"
    PARAMETERS = "parameters"


class RateSchedule(StrEnum):
    """How the learning rate moves over the epochs of a part."""

    COSINE = "cosine"
    CONSTANT = "constant"
    STEPS = "steps"
