"""Schedules by their order alone: events in, work out, no tensors."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from modulewise.schedules import (
    FINAL,
    Event,
    Schedule,
    Sequential,
    Simultaneous,
    State,
    Work,
    sequential,
    simultaneous,
)

parts = st.integers(1, 5)
epochs = st.integers(0, 4)
batches = st.lists(st.integers(1, 4), min_size=30, max_size=30)
"""Batches that the loader gives in each of its passes, which need not be the same."""


def drive(schedule: Schedule, *, parts: int, epochs: int, batches: list[int]) -> tuple[list[Work], State]:
    """An engine without tensors: do the work while the loader has a batch, say that it is exhausted where not."""
    state, done, passes = schedule.start(parts=parts, epochs=epochs), [], 0
    state, work = schedule.next(state, Event.START)
    while work is not None:
        if work.batch >= batches[passes]:
            passes += 1
            state, work = schedule.next(state, Event.EXHAUSTED)
        else:
            done.append(work)
            state, work = schedule.next(state, Event.DONE)
        assert len(done) < 10_000
    return done, state


@settings(deadline=None)
@given(parts=parts, epochs=epochs, batches=batches)
def test_simultaneous_is_every_part_on_every_batch_lowest_first(parts: int, epochs: int, batches: list[int]) -> None:
    """Part by part within a batch, batch by batch within an epoch, each part on its neighbour's newest version."""
    done, _ = drive(simultaneous, parts=parts, epochs=epochs, batches=batches)
    assert done == [
        Work(part, epoch, batch, upstream=batch)
        for epoch in range(epochs)
        for batch in range(batches[epoch])
        for part in range(parts)
    ]


@settings(deadline=None)
@given(parts=parts, epochs=epochs, batches=batches)
def test_sequential_is_one_part_after_another_on_the_final_version(parts: int, epochs: int, batches: list[int]) -> None:
    done, _ = drive(sequential, parts=parts, epochs=epochs, batches=batches)
    assert done == [
        Work(part, epoch, batch, upstream=FINAL)
        for part in range(parts)
        for epoch in range(epochs)
        for batch in range(batches[part * epochs + epoch])
    ]


@settings(deadline=None)
@given(parts=parts, epochs=st.integers(1, 4), count=st.integers(1, 4))
def test_both_schedules_do_the_same_part_updates(parts: int, epochs: int, count: int) -> None:
    """Epochs count passes per part, so that the two are compared fairly."""
    a, _ = drive(simultaneous, parts=parts, epochs=epochs, batches=[count] * 30)
    b, _ = drive(sequential, parts=parts, epochs=epochs, batches=[count] * 30)
    assert len(a) == len(b) == parts * epochs * count
    key = lambda work: (work.part, work.epoch, work.batch)  # noqa: E731
    assert sorted(map(key, a)) == sorted(map(key, b))


@settings(deadline=None)
@given(
    parts=parts,
    epochs=st.integers(1, 4),
    batches=batches,
    stop=st.integers(0, 60),
    schedule=st.sampled_from([simultaneous, sequential]),
)
def test_a_run_interrupted_anywhere_goes_on_where_it_was(
    parts: int, epochs: int, batches: list[int], stop: int, schedule: Schedule
) -> None:
    """A state is all there is: a fresh schedule given a saved state and START does the rest of the work."""
    expected, _ = drive(schedule, parts=parts, epochs=epochs, batches=batches)
    state, work = schedule.next(schedule.start(parts=parts, epochs=epochs), Event.START)
    done: list[Work] = []
    passes, events = 0, 0
    while work is not None:
        if events == stop:
            saved = State(**vars(state))
            state, work = replace(schedule).next(saved, Event.START)
            assert work is not None
        events += 1
        if work.batch >= batches[passes]:
            passes += 1
            state, work = schedule.next(state, Event.EXHAUSTED)
        else:
            done.append(work)
            state, work = schedule.next(state, Event.DONE)
    assert done == expected


@settings(deadline=None)
@given(parts=parts, epochs=epochs, batches=batches, schedule=st.sampled_from([simultaneous, sequential]))
def test_what_is_done_stays_done(parts: int, epochs: int, batches: list[int], schedule: Schedule) -> None:
    _, state = drive(schedule, parts=parts, epochs=epochs, batches=batches)
    assert schedule.next(state, Event.START)[1] is None


@settings(deadline=None)
@given(st.lists(st.sampled_from([Event.DONE, Event.EXHAUSTED]), max_size=40), parts, st.integers(1, 4))
def test_a_state_is_never_changed_by_asking(events: list[Event], parts: int, epochs: int) -> None:
    """The same state and event always give the same answer."""
    for schedule in (simultaneous, sequential):
        state, _ = schedule.next(schedule.start(parts=parts, epochs=epochs), Event.START)
        for event in events:
            before = replace(state)
            answers = [schedule.next(state, event) for _ in range(2)]
            assert answers[0] == answers[1]
            assert state == before
            state = answers[0][0]


def test_feedback_needs_later_parts_in_the_same_step() -> None:
    assert simultaneous.allows_feedback
    assert not sequential.allows_feedback


def test_schedules_are_values() -> None:
    assert Simultaneous() == simultaneous
    assert Sequential() == sequential
    assert Sequential(cache_bytes=0) != sequential
