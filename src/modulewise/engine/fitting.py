"""Run a schedule over a loader: the schedule says who learns from which batch, this does it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import CheckpointError, DataError, MethodError
from ..objective import Role
from ..partition.tree import plain, tensors
from ..schedules import FINAL, Asynchronous, Event, Schedule, Sequential, State, Work
from .actors.driving import drive
from .batches import Batch, check_batch
from .epochs import Epoch, Pass
from .features import FeatureCache, comes_back, frozen_boundaries
from .simulating import simulate

if TYPE_CHECKING:
    from ..trainer import Trainer

__all__ = ["Epoch", "Fit", "run_schedule"]


class Fit:
    """Where pieces of work get their batches from.

    Args:
        trainer: what learns.
        loader: batches (x, y).
        schedule: who sees which batch when.
    """

    def __init__(self, trainer: Trainer, loader: Iterable[Any], schedule: Schedule) -> None:
        self.trainer, self.loader, self.schedule = trainer, loader, schedule
        self.cache = FeatureCache(limit_bytes=schedule.cache_bytes if isinstance(schedule, Sequential) else 0)
        self.cached = False

    def batches(self, work: Work) -> Iterator[tuple[Tensor | None, Any, Any]]:
        """(indices or None, x, y) of one pass."""
        if work.upstream == FINAL and work.part > 0:
            self._fill(work.part)
        if self.cached:
            yield from self.loader.with_indices()  # type: ignore[attr-defined]
            return
        for x, y in self.loader:
            yield None, x, y

    def rest(self, work: Work) -> Iterator[tuple[Tensor | None, Any, Any]]:
        """What is left of the pass that a checkpoint was saved in, after `work.batch` batches."""
        if not hasattr(self.loader, "load_state_dict"):
            return islice(self.batches(work), work.batch, None)
        position, count = getattr(self.loader, "batch", work.batch), _length(self.loader)
        if count is not None and work.batch >= count:
            return iter(())  # the loader stands at the start of the next pass
        if position != work.batch:
            raise CheckpointError(
                f"the checkpoint was saved after {work.batch} batches of a pass, the loader stands after {position}; "
                "give Trainer.load the loader as well"
            )
        return self.batches(work)

    def _fill(self, part: int) -> None:
        """Keep the features of the finished parts, where samples come back unchanged and nothing else is read."""
        loader, partition = self.loader, self.trainer.partition
        if not comes_back(partition, self.trainer.method, loader) or self.cache.limit_bytes == 0:
            self.cached = False
            return
        if self.cache.index != part - 1:
            with self.trainer.engine.autocast(loader.device.type):  # type: ignore[attr-defined]
                self.cached = self.cache.advance(partition, part - 1, loader.indexed(), len(loader.split))  # type: ignore[attr-defined]

    def open(self, work: Work, indices: Tensor | None, x: Any, y: Any) -> Batch:
        """The batch a piece of work begins with."""
        trainer = self.trainer
        views = getattr(self.loader, "views", 1)
        check_batch(x, y, views=views, classes=trainer.classes)
        x, views = trainer.prepared(x, y, views=views)
        if work.upstream != FINAL or work.part == 0:
            return trainer.batch(x, y, views=views)
        known = {self.cache.index: self.cache.rows(indices, x)} if self.cached and indices is not None else {}
        with trainer.engine.autocast(tensors(x)[0].device.type):
            boundaries = frozen_boundaries(trainer.partition, work.part, plain(x), known)
        needed = set(trainer.partition.plans(plain(x))[work.part].reads)
        return trainer.batch(x, y, views=views, boundaries={k: h for k, h in boundaries.items() if k in needed})


def _length(loader: Iterable[Any]) -> int | None:
    return len(loader) if isinstance(loader, Sized) else None


def _check(trainer: Trainer, schedule: Schedule, epochs: int) -> None:
    if epochs < 1:
        raise MethodError(f"epochs={epochs}, expected at least 1")
    talks = any(o.talks for o in trainer.objectives) or trainer.method.locality.sends_feedback
    if (talks or trainer.solver is not None or trainer.partition.shared) and not schedule.allows_feedback:
        raise MethodError(
            f"{type(trainer.method).__name__} needs later parts in the same step, which {type(schedule).__name__} does "
            "not run; use schedules.simultaneous or a method without feedback"
        )


def run_schedule(
    trainer: Trainer,
    loader: Iterable[Any],
    *,
    epochs: int,
    schedule: Schedule,
    validate: Iterable[Any] | None,
    callbacks: Sequence[Callable[[Epoch], None]],
    checkpoint: str | Path | None,
    every: int | None,
) -> list[Epoch]:
    """See `Trainer.fit`."""
    _check(trainer, schedule, epochs)
    if every is not None and isinstance(schedule, Asynchronous):
        raise MethodError(
            f"every={every} was given: under an asynchronous schedule batches are under way between passes' ends, and "
            "the trainer is saved there; leave it out (actors checkpoint within a pass: Actors(folder=, every=))"
        )
    modes = [(module, module.training) for module in trainer.partition.model.modules()]
    trainer.partition.model.train()
    try:
        history: list[Epoch] = []
        with closing(_epochs(trainer, loader, epochs, schedule, validate)) as loop:
            for epoch in loop:
                if epoch is None:
                    if checkpoint is not None and every is not None and trainer.steps % every == 0:
                        trainer.save(checkpoint, loader=loader)
                    continue
                if validate is not None and epoch.validation is None:
                    epoch = replace(epoch, validation=trainer.evaluate(validate))
                history.append(epoch)
                if checkpoint is not None and every is None:
                    trainer.save(checkpoint, loader=loader)
                for callback in callbacks:
                    callback(epoch)
        return history
    finally:
        trainer.progress = None
        for module, mode in modes:
            module.training = mode


def _epochs(
    trainer: Trainer, loader: Iterable[Any], epochs: int, schedule: Schedule, validate: Iterable[Any] | None
) -> Generator[Epoch | None, None, None]:
    """The passes of a schedule, by the engine that runs it."""
    ranked = trainer.passes(loader, epochs, schedule, validate)
    if ranked is not None:
        return ranked
    if isinstance(schedule, Asynchronous):
        if schedule.actors is not None:
            return drive(trainer, loader, epochs=epochs, schedule=schedule)
        return simulate(trainer, loader, epochs=epochs, schedule=schedule)
    return _loop(trainer, loader, epochs, schedule)


def _loop(
    trainer: Trainer, loader: Iterable[Any], epochs: int, schedule: Schedule
) -> Generator[Epoch | None, None, None]:
    """Yield None after every step and an `Epoch` after every pass; `trainer.progress` says where it stands."""
    fit = Fit(trainer, loader, schedule)
    state = schedule.start(parts=len(trainer.partition), epochs=epochs)
    if trainer.progress is not None:
        state = replace(trainer.progress, epochs=epochs)
    state, work = _passed_over(trainer, schedule, *schedule.next(state, Event.START))
    sums = Pass()
    batches: Iterator[tuple[Tensor | None, Any, Any]] | None = None
    if work is not None and work.batch > 0:
        batches = fit.rest(work)
    while work is not None:
        if batches is None:
            batches, sums = fit.batches(work), Pass()
        item = next(batches, None)
        if item is None:
            if work.batch == 0:
                raise DataError("the loader gives no batch, expected at least one; is it a spent iterator?")
            state, following = _passed_over(trainer, schedule, *schedule.next(state, Event.EXHAUSTED))
            trainer.progress = state
            yield _end(trainer, work, following, sums)
            work, batches = following, None
            continue
        state, work = _step(trainer, fit, schedule, state, work, item, sums)
        yield None


def _passed_over(trainer: Trainer, schedule: Schedule, state: State, work: Work | None) -> tuple[State, Work | None]:
    """The next work on a part that something can change, where parts learn one after another.

    Frozen parts without a head to train would look at every batch and stay as they are.
    """
    while work is not None and work.upstream == FINAL and work.batch == 0 and not _can_change(trainer, work.part):
        state, work = schedule.next(replace(state, part=work.part + 1, epoch=0, batch=0), Event.START)
    return state, work


def _can_change(trainer: Trainer, part: int) -> bool:
    """Whether a part or its head has something to train, or a buffer that a forward in train mode may write."""
    learns = any(trainer.updater.parameters(part, role) for role in Role)
    return learns or any(module.training and module._buffers for _, module in trainer.engine.modules(part))


def _step(
    trainer: Trainer,
    fit: Fit,
    schedule: Schedule,
    state: State,
    work: Work,
    item: tuple[Tensor | None, Any, Any],
    sums: Pass,
) -> tuple[State, Work | None]:
    """All work on one batch."""
    if trainer.solver is not None:
        sums.add(trainer.step(item[1], item[2]))
        following: Work | None = work
        for _ in range(len(trainer.partition)):
            state, following = schedule.next(state, Event.DONE)
        trainer.progress = state
        return state, following
    batch, here = fit.open(work, *item), (work.epoch, work.batch)
    with trainer.guarded():
        current: Work | None = work
        while current is not None and (current.epoch, current.batch) == here:
            batch.up(current.part)
            state, current = schedule.next(state, Event.DONE)
        batch.down()
    trainer.steps += 1
    sums.add(batch.losses())
    trainer.progress = state
    return state, current


def _end(trainer: Trainer, work: Work, following: Work | None, sums: Pass) -> Epoch:
    """Close a pass: learning rates move; a part that is final lets its optimiser go."""
    alone = work.upstream == FINAL
    for part in [work.part] if alone else range(len(trainer.partition)):
        trainer.updater.epoch_end(part)
        if alone and (following is None or following.part != part):
            trainer.updater.release(part)
    return Epoch(work.epoch, work.part if alone else None, sums.mean(), sums.seconds(), trainer.steps)
