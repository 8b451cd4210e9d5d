"""Schedules in which every part goes at its own pace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..buffers import Buffer, LeastUsed, Policy, WhenFull
from ..errors import MethodError
from ..wires import Exact, Wire
from .actors import Actors
from .lanes import begin, follow, withdraw
from .machine import Event, Schedule, State, Work

__all__ = ["Asynchronous", "asynchronous"]


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


asynchronous = Asynchronous()
