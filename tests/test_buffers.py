"""Buffers, their ledger and the parts around them, by their order alone: no tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulewise.buffers import Buffer, Entry, LeastUsed, Ledger, MostRecent, OldestFirst, Policy, WhenFull
from modulewise.errors import DataError, MethodError
from modulewise.schedules import Asynchronous, Event, State, Work

POLICIES = [LeastUsed(), MostRecent(), OldestFirst()]
policies, fulls = st.sampled_from(POLICIES), st.sampled_from(list(WhenFull))


def entry(version: int, uses: int = 0) -> Entry:
    return Entry(version=version, epoch=0, batch=version, uses=uses)


def filled(count: int, **settings) -> Buffer:
    buffer = Buffer(**settings)
    for version in range(count):
        buffer = buffer.put(entry(version))
    return buffer


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(LeastUsed(), [2, 1, 0, 2, 1, 0]), (MostRecent(), [2, 2, 1, 1, 0, 0]), (OldestFirst(), [0, 1, 2, 0, 1, 2])],
)
def test_a_policy_takes_entries_in_the_order_its_name_says(policy: Policy, expected: list[int]) -> None:
    buffer, taken = filled(3, capacity=3, reuse=2, policy=policy), []
    while buffer.ready:
        buffer, used = buffer.take()
        taken.append(used.version)
    assert taken == expected
    assert buffer.entries == ()


@settings(deadline=None)
@given(policies, fulls, st.integers(1, 4), st.integers(1, 3), st.lists(st.booleans(), max_size=60))
def test_a_buffer_keeps_its_bounds_whatever_comes(
    policy: Policy, full: WhenFull, capacity: int, reuse: int, moves: list[bool]
) -> None:
    """Never more than its capacity, never used more than the cap, nothing unused gone unless it may drop it."""
    buffer, uses = Buffer(capacity=capacity, reuse=reuse, policy=policy, when_full=full), Counter()
    for writes in moves:
        if writes and buffer.room:
            buffer = buffer.put(entry(buffer.written))
        elif not writes and buffer.ready:
            buffer, used = buffer.take()
            uses[used.version] += 1
            assert used.uses == uses[used.version] <= reuse
            assert buffer.staleness(used) == buffer.written - 1 - used.version >= 0
        assert len(buffer.entries) <= capacity
        unused = sum(entry.uses == 0 for entry in buffer.entries)
        assert len(uses) + unused + buffer.dropped == buffer.written
    assert full is WhenFull.DROP or buffer.dropped == 0


def test_a_writer_waits_until_an_entry_has_been_used() -> None:
    full = filled(2, capacity=2, reuse=3)
    assert not full.room
    with pytest.raises(DataError, match="full"):
        full.put(entry(2))
    used, taken = full.take()
    assert (used.room, taken.version) == (True, 1)
    assert [e.version for e in used.put(entry(2)).entries] == [0, 2]  # the one that was used has gone


def test_a_buffer_that_drops_lets_the_oldest_go_as_the_paper_does() -> None:
    dropping = filled(3, capacity=2, when_full=WhenFull.DROP)
    assert ([e.version for e in dropping.entries], dropping.dropped) == ([1, 2], 1)


def test_an_entry_put_twice_is_there_once_and_a_gap_is_refused() -> None:
    buffer = filled(2, capacity=4)
    assert buffer.put(entry(1)) == buffer
    with pytest.raises(DataError, match="expects entry 2"):
        buffer.put(entry(3))


def test_a_closed_buffer_gives_every_unused_entry_once_oldest_first_and_none_again() -> None:
    buffer, _ = filled(3, capacity=3, reuse=5).take()
    buffer, taken = buffer.close(), []
    while buffer.ready:
        buffer, used = buffer.take()
        taken.append(used.version)
    assert taken == [0, 1]
    assert buffer.drained
    with pytest.raises(DataError, match="none ready"):
        buffer.take()
    with pytest.raises(DataError, match="closed"):
        buffer.put(entry(3))


def test_staleness_counts_what_the_writer_holds_outside_a_full_buffer() -> None:
    buffer = filled(1, capacity=1).offered(1)
    _, used = buffer.take()
    assert buffer.staleness(used) == 1


def test_the_ledger_finds_a_lost_a_doubled_and_an_unknown_sample_and_too_many_uses() -> None:
    ledger = Ledger(reuse=2)
    ledger.enter(0, [0, 1])
    ledger.enter(0, [3])
    ledger.verify(epoch=0, samples=[0, 1, 3])
    for samples, message in (([0, 1, 2, 3], "sample 2 entered 0 times"), ([0, 1], "sample 3 entered 1 times")):
        with pytest.raises(DataError, match=message):
            ledger.verify(epoch=0, samples=samples)
    ledger.enter(0, [1])
    with pytest.raises(DataError, match="sample 1 entered 2 times, expected exactly once"):
        ledger.verify(epoch=0, samples=[0, 1, 3])
    ledger.use(entry(0))
    ledger.use(entry(0))
    with pytest.raises(DataError, match="used 3 times, expected at most 2"):
        ledger.use(entry(0))
    assert ledger.most_used == 3


def drive(schedule: Asynchronous, *, parts: int, epochs: int, batches: int) -> tuple[list[Work], State]:
    state, done = schedule.start(parts=parts, epochs=epochs), []
    state, work = schedule.next(state, Event.START)
    while work is not None:
        if work.part == 0 and work.batch >= batches:
            state, work = schedule.next(state, Event.EXHAUSTED)
        else:
            done.append(work)
            state, work = schedule.next(state, Event.DONE)
        assert len(done) < 10_000
    return done, state


speeds = st.lists(st.sampled_from([0.5, 1.0, 1.3, 2.0, 5.0]), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(speeds, policies, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 3))
def test_at_any_speed_every_part_sees_every_batch_at_least_once_and_at_most_as_often_as_it_may(
    slow_downs: list[float], policy: Policy, capacity: int, reuse: int, epochs: int, batches: int, seed: int
) -> None:
    """Part 0 sees each once; a part never reads a batch of another pass."""
    schedule = Asynchronous(
        slow_down=tuple(slow_downs), policy=policy, capacity=capacity, reuse=reuse, jitter=0.3, seed=seed
    )
    done, state = drive(schedule, parts=len(slow_downs), epochs=epochs, batches=batches)
    assert state.epoch == epochs
    for part in range(len(slow_downs)):
        seen = [(work.epoch, work.batch) for work in done if work.part == part]
        assert set(seen) == {(epoch, batch) for epoch in range(epochs) for batch in range(batches)}
        assert max(Counter(seen).values()) <= reuse**part
        assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
        versions = Counter((work.upstream) for work in done if work.part == part)
        assert part == 0 or max(versions.values()) <= reuse
    assert done == drive(schedule, parts=len(slow_downs), epochs=epochs, batches=batches)[0]


@settings(deadline=None, max_examples=40)
@given(speeds, st.integers(1, 4), st.integers(1, 9))
def test_a_queue_without_reuse_keeps_the_order_at_any_speed(
    slow_downs: list[float], capacity: int, batches: int
) -> None:
    """So that each part's numbers are those of the simultaneous schedule; so are a buffer's of one."""
    for settings_ in ({"policy": OldestFirst(), "capacity": capacity}, {"policy": LeastUsed(), "capacity": 1}):
        schedule = Asynchronous(slow_down=tuple(slow_downs), **settings_)
        done, _ = drive(schedule, parts=len(slow_downs), epochs=2, batches=batches)
        for part in range(len(slow_downs)):
            seen = [(work.epoch, work.batch) for work in done if work.part == part]
            assert seen == [(epoch, batch) for epoch in range(2) for batch in range(batches)]


def test_the_clock_is_that_of_a_pipeline_as_slow_as_its_slowest_part() -> None:
    """n batches through K parts with buffers of one: (n - 1) max + sum of ticks."""
    for slow_down in ((1.0, 2.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, 1.0)):
        _, state = drive(Asynchronous(slow_down=slow_down, capacity=1), parts=3, epochs=1, batches=20)
        assert state.lanes is not None
        assert state.lanes.now == 19 * max(slow_down) + sum(slow_down)
        assert [lane.busy for lane in state.lanes.lanes] == [20 * factor for factor in slow_down]


def test_staleness_on_the_clock_counts_the_batch_for_which_there_was_no_room() -> None:
    """Part 1, three times as slow, takes batch n when part 0 has made n + 2: one in the buffer, one in its hands."""
    schedule, stale = Asynchronous(slow_down=(1.0, 3.0), capacity=1), []
    state = schedule.start(parts=2, epochs=1)
    state, work = schedule.next(state, Event.START)
    while work is not None:
        if work.part == 1:
            assert state.lanes is not None
            stale.append(state.lanes.lanes[1].staleness)
        out = work.part == 0 and work.batch >= 5
        state, work = schedule.next(state, Event.EXHAUSTED if out else Event.DONE)
    assert stale == [0, 1, 1, 1, 0]


def test_a_slow_part_holds_the_others_up_unless_batches_may_be_dropped_or_used_again() -> None:
    """Waiting for room, part 0 goes at the pace of part 1; dropping, at its own; part 2 fills its time with reuse."""
    slow = {"slow_down": (1.0, 3.0, 1.0), "capacity": 2}

    def updates(**changes) -> list[int]:
        done, _ = drive(Asynchronous(**slow, **changes), parts=3, epochs=1, batches=60)
        return [sum(work.part == part for work in done) for part in range(3)]

    assert updates() == [60, 60, 60]
    dropping = updates(when_full=WhenFull.DROP)
    assert dropping[0] == 60
    assert dropping[1] < 25
    reusing = updates(reuse=3)
    assert reusing[1] == 60
    assert reusing[2] > 110


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"capacity": 0}, {"reuse": 0}, {"slow_down": (1.0, 0.0)}, {"jitter": 1.0}):
        with pytest.raises(MethodError, match="expected"):
            Asynchronous(**wrong)
    with pytest.raises(MethodError, match="2 factors for 3 parts"):
        Asynchronous(slow_down=(1.0, 1.0)).slow_downs(3)


def test_buffers_are_values() -> None:
    """Every operation gives a new one; the old one is as it was."""
    before = filled(2, capacity=2)
    copy = replace(before)
    before.take()
    before.offered(7)
    before.close()
    assert before == copy
