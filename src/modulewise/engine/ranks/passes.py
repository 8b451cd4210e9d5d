"""Run a schedule on one rank: the reading rank asks its loader, the others take what arrives."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...errors import DataError, MethodError
from ...partition.tree import plain
from ...schedules import Event, Pipelined, Schedule, Simultaneous, State, Work
from ..batches import check_batch
from ..epochs import Epoch, Pass
from ..fitting import Fit
from .crew import Crew

__all__ = ["passes", "step"]

_Next = Callable[[], dict[str, Any] | None]


def step(crew: Crew, x: Any, y: Any, *, views: int) -> dict[int, Tensor]:
    """One batch: read here, or taken from the rank below; the losses of this rank's parts."""
    try:
        load = _read(crew, x, y, views) if crew.seat.reads else crew.received()
        if load is None:
            raise MethodError("another rank has ended a pass of fit; every rank must make the same calls")
        with crew.trainer.guarded():
            session = crew.opened(load)
            for part in crew.seat.own:
                crew.run(session, part)
            losses = crew.closed(session)
    except Exception as error:
        crew.stop(error)
        raise
    crew.trainer.steps += 1
    return losses


def passes(
    crew: Crew, loader: Iterable[Any], epochs: int, schedule: Schedule, validate: Iterable[Any] | None
) -> Generator[Epoch | None, None, None]:
    """Yield None after every step and an `Epoch` after every pass, the same on every rank.

    Args:
        crew: the ranks.
        loader: batches (x, y); only the rank that reads data looks at it.
        epochs: passes over the data.
        schedule: pipelined, or simultaneous, which is the same on ranks.
        validate: batches to evaluate on after every pass; again of the reading rank alone.

    Raises:
        MethodError: the schedule has no upstream part in the same step.
        RankError: another rank has stopped, hangs or is too slow.
    """
    if not isinstance(schedule, Pipelined | Simultaneous):
        raise MethodError(
            f"{type(schedule).__name__} was given with ranks=, expected schedules.pipelined; leave ranks= out for it"
        )
    if isinstance(schedule, Pipelined):
        for box in crew.outboxes:
            box.depth = schedule.depth
    own, progress = crew.seat.own, crew.trainer.progress
    state = schedule.start(parts=own.stop, first=own.start, epochs=epochs)
    if progress is not None:
        state = replace(progress, parts=own.stop, first=own.start, part=own.start, epochs=epochs)
    try:
        yield from _passes(crew, Fit(crew.trainer, loader, schedule), schedule, state, validate)
        crew.gather()
    except BaseException as error:
        crew.stop(error)
        raise


def _passes(
    crew: Crew, fit: Fit, schedule: Schedule, state: State, validate: Iterable[Any] | None
) -> Generator[Epoch | None, None, None]:
    trainer = crew.trainer
    state, work = schedule.next(state, Event.START)
    sums, arriving = Pass(), None
    while work is not None:
        if arriving is None:
            sums, arriving = Pass(), _source(crew, fit, work, schedule)
        load = arriving()
        if load is None:
            if work.batch == 0:
                raise DataError("the loader gives no batch, expected at least one; is it a spent iterator?")
            crew.ended()
            state, following = schedule.next(state, Event.EXHAUSTED)
            trainer.progress = state
            yield _end(crew, work, sums, validate)
            work, arriving = following, None
            continue
        state, work = _one(crew, schedule, state, work, load, sums)
        trainer.progress = state
        yield None


def _one(
    crew: Crew, schedule: Schedule, state: State, work: Work, load: dict[str, Any], sums: Pass
) -> tuple[State, Work | None]:
    """This rank's work on one batch."""
    here, current = (work.epoch, work.batch), work
    following: Work | None = work
    with crew.trainer.guarded():
        session = crew.opened(load)
        while following is not None and (following.epoch, following.batch) == here:
            current = following
            crew.run(session, current.part)
            state, following = schedule.next(state, Event.DONE)
        losses = crew.closed(session)
    crew.trainer.steps += 1
    if load["rows"] != load["of"]:
        losses = {part: loss * (load["rows"] / load["of"]) for part, loss in losses.items()}
    sums.add(losses)
    return state, following


def _source(crew: Crew, fit: Fit, work: Work, schedule: Schedule) -> _Next:
    """What gives the batches of a pass, one a call, and None at its end."""
    if not crew.seat.reads:
        assert crew.inbox is not None
        crew.inbox.start(depth=schedule.depth if isinstance(schedule, Pipelined) else 2)
        return crew.received
    batches = fit.rest(work) if work.batch else fit.batches(work)
    views = getattr(fit.loader, "views", 1)

    def read() -> dict[str, Any] | None:
        item = next(batches, None)
        return None if item is None else _read(crew, item[1], item[2], views)

    return read


def _read(crew: Crew, x: Any, y: Any, views: int) -> dict[str, Any]:
    check_batch(x, y, views=views, classes=crew.trainer.classes)
    x, views = crew.trainer.prepared(x, y, views=views)
    return crew.dealt(plain(x), y, views)


def _end(crew: Crew, work: Work, sums: Pass, validate: Iterable[Any] | None) -> Epoch:
    """Close a pass: own learning rates move, and every rank learns of all losses."""
    trainer = crew.trainer
    for part in crew.seat.own:
        trainer.updater.epoch_end(part)
    losses: dict[int, float] = {}
    told = crew.group.facts((sums.mean(), validate is not None))
    for own, _ in told:
        for part, loss in own.items():
            losses[part] = losses.get(part, 0.0) + loss
    seconds = sums.seconds()
    # Rank 0 has the data, and so says whether there is any to validate on.
    validation = crew.evaluate(validate or ()) if told[0][1] else None
    return Epoch(work.epoch, None, dict(sorted(losses.items())), seconds, trainer.steps, validation)
