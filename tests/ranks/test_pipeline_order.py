"""The pipelined schedule as a state machine: no tensors, no processes, only its order."""

from __future__ import annotations

from itertools import pairwise

import pytest

from modulewise.schedules import Event, Work, pipelined, simultaneous


def order(schedule, *, first: int, stop: int, batches: int, epochs: int) -> list[Work]:
    """All work of one rank."""
    state, event, found = schedule.start(parts=stop, first=first, epochs=epochs), Event.START, []
    while True:
        state, work = schedule.next(state, event)
        if work is not None and work.batch == batches:
            state, work = schedule.next(state, Event.EXHAUSTED)
        if work is None:
            return found
        found.append(work)
        event = Event.DONE


@pytest.mark.parametrize("shares", [[range(1), range(1, 4)], [range(2), range(2, 3), range(3, 4)]])
def test_the_ranks_together_do_the_work_of_one_process(shares):
    """Each part sees every batch once, on the version of the parts below that the simultaneous schedule shows it."""
    whole = order(simultaneous, first=0, stop=4, batches=3, epochs=2)
    ranks = [order(pipelined, first=own.start, stop=own.stop, batches=3, epochs=2) for own in shares]
    for own, work in zip(shares, ranks, strict=True):
        assert work == [item for item in whole if item.part in own]
    assert order(pipelined, first=0, stop=4, batches=3, epochs=2) == whole


@pytest.mark.parametrize("depth", [1, 2])
def test_ranks_are_in_different_batches_at_once_and_no_more_boundaries_wait_than_the_depth(depth):
    """A clock that gives every rank one piece of work a tick: rank k starts batch t at tick t + k, and none idles."""
    ranks, batches = 3, 6
    work = [order(pipelined, first=k, stop=k + 1, batches=batches, epochs=1) for k in range(ranks)]
    done, ticks = [0] * ranks, 0
    while done[-1] < batches:
        ready = [
            done[k] < batches
            and (k == 0 or done[k - 1] > done[k])
            and (k == ranks - 1 or done[k] - done[k + 1] < depth + 1)
            for k in range(ranks)
        ]
        for k in range(ranks):
            if ready[k]:
                assert work[k][done[k]].batch == done[k] == ticks - k
        done = [count + go for count, go in zip(done, ready, strict=True)]
        assert all(below - above <= depth + 1 for below, above in pairwise(done))
        ticks += 1
    assert ticks == batches + ranks - 1
