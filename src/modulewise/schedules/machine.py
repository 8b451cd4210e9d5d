"""What a schedule is: a state machine that hands out pieces of work, one event at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

from .lanes import Lanes

__all__ = ["FINAL", "Event", "Schedule", "State", "Work"]

FINAL = -1
"""The upstream version "final": the parts below are frozen as they ended."""


class Event(Enum):
    """What happened to the last piece of work."""

    START = "start"
    DONE = "done"
    EXHAUSTED = "the loader has no further batch"


@dataclass(frozen=True)
class Work:
    """One part learns from one batch.

    Args:
        part: which part.
        epoch: which pass over the data, counted per part.
        batch: which batch of the pass.
        upstream: which version of the parts below it sees: the index of the batch whose step made it (counted over
            the pass), or `FINAL`; where parts go at their own pace, the update of the part below that made its input.
    """

    part: int
    epoch: int
    batch: int
    upstream: int


@dataclass(frozen=True)
class State:
    """Where a schedule is.

    Args:
        parts: the part after the last one; K where one process trains them all.
        epochs: passes over the data.
        part: the next part.
        epoch: the present pass.
        batch: the present batch of the pass.
        first: the lowest part; above 0 where another rank trains the parts below.
        lanes: where every part is, of a schedule in which each is at a place of its own.
    """

    parts: int
    epochs: int
    part: int = 0
    epoch: int = 0
    batch: int = 0
    first: int = 0
    lanes: Lanes | None = None


class Schedule(ABC):
    """A state machine over (part, batch) pairs."""

    def start(self, *, parts: int, epochs: int, first: int = 0) -> State:
        """The state before any work on parts first .. parts - 1."""
        return State(parts, epochs, part=first, first=first)

    def passes(self, parts: int) -> int:
        """How many passes over the data it takes every part to make one."""
        return 1

    @property
    @abstractmethod
    def allows_feedback(self) -> bool:
        """Whether later parts run in the same step, so that they can send messages."""

    @abstractmethod
    def next(self, state: State, event: Event) -> tuple[State, Work | None]:
        """The next piece of work, or None where all is done."""
