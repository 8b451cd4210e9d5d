"""Who sees which batch when, and which version of the upstream part: pure state machines, no tensors.

An engine asks a schedule for the next piece of work, does it, and tells how it went; a test or a simulation can do the
same with nothing but events.

>>> schedule, state = simultaneous, simultaneous.start(parts=2, epochs=1)
>>> event = Event.START
>>> for _ in range(4):
...     state, work = schedule.next(state, event)
...     print(work.batch, work.part, work.upstream)
...     event = Event.DONE
0 0 0
0 1 0
1 0 1
1 1 1
>>> schedule.next(state, Event.DONE)[0].batch, schedule.next(schedule.next(state, event)[0], Event.EXHAUSTED)[1]
(2, None)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum

__all__ = [
    "FINAL",
    "Event",
    "Pipelined",
    "Schedule",
    "Sequential",
    "Simultaneous",
    "State",
    "Work",
    "pipelined",
    "sequential",
    "simultaneous",
]

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
            the pass), or `FINAL`.
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
    """

    parts: int
    epochs: int
    part: int = 0
    epoch: int = 0
    batch: int = 0
    first: int = 0


class Schedule(ABC):
    """A state machine over (part, batch) pairs."""

    def start(self, *, parts: int, epochs: int, first: int = 0) -> State:
        """The state before any work on parts first .. parts - 1."""
        return State(parts, epochs, part=first, first=first)

    @property
    @abstractmethod
    def allows_feedback(self) -> bool:
        """Whether later parts run in the same step, so that they can send messages."""

    @abstractmethod
    def next(self, state: State, event: Event) -> tuple[State, Work | None]:
        """The next piece of work, or None where all is done."""


@dataclass(frozen=True)
class Simultaneous(Schedule):
    """Every part learns from every batch, lowest first; upstream is as it was in the same step (lag 0)."""

    @property
    def allows_feedback(self) -> bool:
        """Later parts run in the same step."""
        return True

    def next(self, state: State, event: Event) -> tuple[State, Work | None]:
        """The next part of this batch, then the next batch, then the next epoch."""
        return _upwards(state, event)


@dataclass(frozen=True)
class Pipelined(Schedule):
    """Every rank takes its own parts through every batch, as soon as the parts below have let the batch go (lag 0).

    Each batch sees the upstream parts as the simultaneous schedule shows them, so that the numbers are the same; what
    differs is that the ranks are in different batches at once. On one rank the two are one.

    Args:
        depth: batches that a boundary may be ahead of the part that reads it, on each side of the wire, >= 1; 2 lets
            the next one arrive while the present one is worked on.

    The work of the rank with parts 2 and 3:

    >>> state, event = pipelined.start(parts=4, epochs=1, first=2), Event.START
    >>> for _ in range(3):
    ...     state, work = pipelined.next(state, event)
    ...     print(work.batch, work.part)
    ...     event = Event.DONE
    0 2
    0 3
    1 2
    """

    depth: int = 2

    @property
    def allows_feedback(self) -> bool:
        """Later parts run in the same step, on this rank or on another."""
        return True

    def next(self, state: State, event: Event) -> tuple[State, Work | None]:
        """The next own part of this batch, then the next batch, then the next epoch."""
        return _upwards(state, event)


def _upwards(state: State, event: Event) -> tuple[State, Work | None]:
    """Batch by batch, the lowest part first."""
    if event is Event.DONE:
        last = state.part == state.parts - 1
        state = replace(state, part=state.first if last else state.part + 1, batch=state.batch + last)
    elif event is Event.EXHAUSTED:
        state = replace(state, part=state.first, batch=0, epoch=state.epoch + 1)
    if state.epoch >= state.epochs:
        return state, None
    return state, Work(state.part, state.epoch, state.batch, state.batch)


@dataclass(frozen=True)
class Sequential(Schedule):
    """One part after another, each for all its epochs on the final version of the parts below.

    Args:
        cache_bytes: most bytes of host memory for the features of the parts below, kept where the data is not augmented
            (0: recompute them for every batch; default 4 GiB).
    """

    cache_bytes: int = 4 << 30

    @property
    def allows_feedback(self) -> bool:
        """Later parts do not exist yet when a part learns."""
        return False

    def next(self, state: State, event: Event) -> tuple[State, Work | None]:
        """The next batch of this part, then its next epoch, then the next part."""
        if event is Event.DONE:
            state = replace(state, batch=state.batch + 1)
        elif event is Event.EXHAUSTED:
            state = replace(state, batch=0, epoch=state.epoch + 1)
            if state.epoch == state.epochs:
                state = replace(state, part=state.part + 1, epoch=0)
        if state.part >= state.parts or state.epochs == 0:
            return state, None
        return state, Work(state.part, state.epoch, state.batch, FINAL)


simultaneous = Simultaneous()
pipelined = Pipelined()
sequential = Sequential()
