"""Schedules in which an order that is known beforehand says who learns next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .machine import FINAL, Event, Schedule, State, Work

__all__ = ["Pipelined", "Sequential", "Simultaneous", "pipelined", "sequential", "simultaneous"]


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

    def passes(self, parts: int) -> int:
        """One for each part, since it learns alone."""
        return parts

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
