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
from dataclasses import dataclass, field, replace
from enum import Enum

from .actors import Actors
from .buffers import Buffer, LeastUsed, Policy, WhenFull
from .errors import MethodError
from .lanes import Lanes, begin, follow, withdraw
from .wires import Exact, Wire

__all__ = [
    "FINAL",
    "Actors",
    "Asynchronous",
    "Event",
    "Schedule",
    "Sequential",
    "Simultaneous",
    "State",
    "Work",
    "asynchronous",
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
            the pass), or `FINAL`; where parts go at their own pace, the update of the part below that made its input.
    """

    part: int
    epoch: int
    batch: int
    upstream: int


@dataclass(frozen=True)
class State:
    """Where a schedule is; `lanes` where every part is at a place of its own."""

    parts: int
    epochs: int
    part: int = 0
    epoch: int = 0
    batch: int = 0
    lanes: Lanes | None = None


class Schedule(ABC):
    """A state machine over (part, batch) pairs."""

    def start(self, *, parts: int, epochs: int) -> State:
        """The state before any work."""
        return State(parts, epochs)

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


@dataclass(frozen=True)
class Simultaneous(Schedule):
    """Every part learns from every batch, lowest first; upstream is as it was in the same step (lag 0)."""

    @property
    def allows_feedback(self) -> bool:
        """Later parts run in the same step."""
        return True

    def next(self, state: State, event: Event) -> tuple[State, Work | None]:
        """The next part of this batch, then the next batch, then the next epoch."""
        if event is Event.DONE:
            last = state.part == state.parts - 1
            state = replace(state, part=0 if last else state.part + 1, batch=state.batch + last)
        elif event is Event.EXHAUSTED:
            state = replace(state, part=0, batch=0, epoch=state.epoch + 1)
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


@dataclass(frozen=True, kw_only=True)
class Asynchronous(Schedule):
    """Every part at its own pace, from a bounded buffer that the part below writes: no forward lock.

    Without `actors` the parts run in this process on a simulated clock, one tick an update; with them, in processes of
    their own. A pass over the data ends for a part when the part below has ended it and the buffer between them holds
    nothing unused; the next pass begins when all parts have ended it. With `reuse=1` and `OldestFirst`, or with
    `reuse=1` and `capacity=1`, every part sees the batches in order and once: the numbers are those of `simultaneous`,
    at any speed.

    Args:
        capacity: most batches in a buffer, >= 1.
        reuse: how often a part may learn from one batch, >= 1.
        policy: which batch a part takes: `buffers.LeastUsed()` (the paper's), `MostRecent()` or `OldestFirst()`.
        when_full: whether the part below waits for room, or drops a batch (the paper's).
        wire: how boundaries are written for the way from part to part, see `modulewise.wires`.
        slow_down: simulated ticks of an update of every part, > 0; empty for one each.
        jitter: share of random ticks, 0 <= jitter < 1, uniform in +- jitter.
        seed: of the jitter.
        actors: where to run the parts as processes; None for the simulation.

    Raises:
        MethodError: a number is out of range.

    References:
        Belilovsky, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, https://arxiv.org/abs/1901.08164

    Departs from the paper: there the part to run next is drawn at random, a slow one less often, and parts of other
    epochs mix; here a clock says who is next, and a pass ends for all parts before the next one begins.
    """

    capacity: int = 4
    reuse: int = 1
    policy: Policy = field(default_factory=LeastUsed)
    when_full: WhenFull = WhenFull.WAIT
    wire: Wire = field(default_factory=Exact)
    slow_down: tuple[float, ...] = ()
    jitter: float = 0.0
    seed: int = 0
    actors: Actors | None = None

    def __post_init__(self) -> None:
        self.buffer()
        if any(not factor > 0 for factor in self.slow_down) or not 0 <= self.jitter < 1:
            raise MethodError(
                f"slow_down={self.slow_down} and jitter={self.jitter}, expected positive numbers and 0 <= jitter < 1"
            )

    @property
    def allows_feedback(self) -> bool:
        """A part learns from a batch when others are elsewhere."""
        return False

    def buffer(self) -> Buffer:
        """An empty buffer as between any two parts."""
        return Buffer(capacity=self.capacity, reuse=self.reuse, policy=self.policy, when_full=self.when_full)

    def next(self, state: State, event: Event) -> tuple[State, Work | None]:
        """The next part that starts on a batch on the simulated clock."""
        lanes = state.lanes or begin(state.parts, epoch=state.epoch, buffer=self.buffer())
        if event is Event.EXHAUSTED:
            lanes = withdraw(lanes)
        slow_downs = self.slow_downs(state.parts)
        while state.epoch < state.epochs:
            lanes, part = follow(lanes, slow_downs=slow_downs, jitter=self.jitter, seed=self.seed)
            if part is not None:
                source = lanes.lanes[part].source
                assert source is not None, "it has started"
                state = replace(state, part=part, batch=source.batch, lanes=lanes)
                return state, Work(part, source.epoch, source.batch, source.version)
            state = replace(state, part=0, batch=0, epoch=state.epoch + 1)
            lanes = begin(state.parts, epoch=state.epoch, buffer=self.buffer(), before=lanes)
        return replace(state, lanes=lanes), None

    def slow_downs(self, parts: int) -> tuple[float, ...]:
        """One factor a part.

        Raises:
            MethodError: another number of them was given.
        """
        if self.slow_down and len(self.slow_down) != parts:
            raise MethodError(f"slow_down has {len(self.slow_down)} factors for {parts} parts, expected one a part")
        return self.slow_down or (1.0,) * parts


simultaneous = Simultaneous()
sequential = Sequential()
asynchronous = Asynchronous()
