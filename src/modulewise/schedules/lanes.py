"""Parts side by side, each at its own pace on a simulated clock, with a buffer between neighbours: no tensors.

Part k takes an entry from the buffer below it, is busy for so many ticks, and puts what it made into the buffer above,
where it waits for room. Whatever could happen at one time happens from the top part down, so that a run is a pure
function of its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..buffers import Buffer, Entry
from ..seeding import seed_of

__all__ = ["Lane", "Lanes", "begin", "follow", "ticks", "withdraw"]


@dataclass(frozen=True)
class Lane:
    """Where one part is.

    Args:
        updates: how many it has made, which is its version.
        source: the entry that it is at work on; None where it is idle.
        until: when it will have finished, in ticks.
        held: what it has made and found no room for.
        staleness: of the entry that it took last.
        busy: ticks that it has worked.
    """

    updates: int = 0
    source: Entry | None = None
    until: float = 0.0
    held: Entry | None = None
    staleness: int = 0
    busy: float = 0.0


@dataclass(frozen=True)
class Lanes:
    """All parts and the buffers between them.

    Args:
        now: the simulated time, in ticks: the time of one update of a part that is not slowed down.
        lanes: one a part.
        buffers: buffer k is written by part k and read by part k + 1.
        epoch: the pass over the data that part 0 reads.
        read: how many batches of it part 0 has read.
        exhausted: whether the data has no further batch in this pass.
    """

    now: float
    lanes: tuple[Lane, ...]
    buffers: tuple[Buffer, ...]
    epoch: int = 0
    read: int = 0
    exhausted: bool = False


def ticks(slow_down: float, jitter: float, *, seed: int, part: int, update: int) -> float:
    """How long one update takes: slow_down (1 + jitter u), u uniform in [-1, 1) and drawn from (seed, part, update).

    >>> ticks(1.5, 0.0, seed=0, part=0, update=3)
    1.5
    >>> 0.9 <= ticks(1.0, 0.1, seed=0, part=0, update=3) < 1.1
    True
    """
    if jitter == 0:
        return slow_down
    return slow_down * (1 + jitter * (seed_of(seed, "ticks", part, update) / 2**62 - 1))


def begin(parts: int, *, epoch: int, buffer: Buffer, before: Lanes | None = None) -> Lanes:
    """All parts idle at the start of a pass; versions, clock and numbers of entries go on from an earlier one."""
    if before is None:
        return Lanes(0.0, (Lane(),) * parts, (buffer,) * (parts - 1), epoch)
    return Lanes(before.now, before.lanes, tuple(buffer.opened() for buffer in before.buffers), epoch)


def follow(state: Lanes, *, slow_downs: Sequence[float], jitter: float, seed: int) -> tuple[Lanes, int | None]:
    """Let time pass until a part starts on an entry.

    Args:
        state: where all parts are.
        slow_downs: one a part, 1.0 for a part at full speed.
        jitter: see `ticks`.
        seed: see `ticks`.

    Returns:
        The state, and the part that has started on its `source`; None where the pass is over.
    """
    while True:
        state = _delivered(state)
        for part in reversed(range(len(state.lanes))):
            started = _started(state, part)
            if started is not None:
                lane = started.lanes[part]
                duration = ticks(slow_downs[part], jitter, seed=seed, part=part, update=lane.updates)
                lane = replace(lane, until=state.now + duration, busy=lane.busy + duration)
                return _with(started, part, lane), part
        working = [lane.until for lane in state.lanes if lane.source is not None]
        if not working:
            return state, None
        state = replace(state, now=min(working))


def withdraw(state: Lanes) -> Lanes:
    """Part 0 has started and the data had no further batch: it is idle again, and its pass is over."""
    lane = state.lanes[0]
    assert lane.source is not None, "part 0 is at work"
    lane = replace(lane, source=None, busy=lane.busy - (lane.until - state.now), until=state.now)
    return replace(_with(state, 0, lane), read=state.read - 1, exhausted=True)


def _with(state: Lanes, part: int, lane: Lane, buffers: tuple[Buffer, ...] | None = None) -> Lanes:
    lanes = (*state.lanes[:part], lane, *state.lanes[part + 1 :])
    return replace(state, lanes=lanes, buffers=state.buffers if buffers is None else buffers)


def _replaced(buffers: tuple[Buffer, ...], index: int, buffer: Buffer) -> tuple[Buffer, ...]:
    return (*buffers[:index], buffer, *buffers[index + 1 :])


def _delivered(state: Lanes) -> Lanes:
    """Parts that have finished put what they made; the buffer above a part that has ended its pass is closed."""
    for part in reversed(range(len(state.lanes))):
        lane, above = state.lanes[part], part < len(state.lanes) - 1
        if lane.source is not None and lane.until <= state.now:
            made = replace(lane.source, version=lane.updates, uses=0)
            lane = replace(lane, source=None, updates=lane.updates + 1, held=made if above else None)
            state = _with(state, part, lane)
        if not above:
            continue
        buffer = state.buffers[part]
        if lane.held is not None:
            buffer = buffer.offered(lane.held.version)
            if buffer.room:
                buffer, lane = buffer.put(lane.held), replace(lane, held=None)
        if _ended(state, part) and lane.source is None and lane.held is None:
            buffer = buffer.close()
        state = _with(state, part, lane, _replaced(state.buffers, part, buffer))
    return state


def _ended(state: Lanes, part: int) -> bool:
    """Whether there is nothing more to read for a part in this pass."""
    return state.buffers[part - 1].drained if part else state.exhausted


def _started(state: Lanes, part: int) -> Lanes | None:
    """The state with an idle part at work on an entry, if it can be."""
    lane = state.lanes[part]
    if lane.source is not None or lane.held is not None or _ended(state, part):
        return None
    if part == 0:
        source = Entry(version=state.read, epoch=state.epoch, batch=state.read, uses=1)
        return replace(_with(state, 0, replace(lane, source=source)), read=state.read + 1)
    buffer = state.buffers[part - 1]
    if not buffer.ready:
        return None
    taken, source = buffer.take()
    lane = replace(lane, source=source, staleness=buffer.staleness(source))
    return _with(state, part, lane, _replaced(state.buffers, part - 1, taken))
