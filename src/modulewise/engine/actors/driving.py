"""Run an asynchronous schedule on Ray: feed the first buffer, watch over the parts, bring home what they learned."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from ...buffers import Buffer, Entry, OldestFirst
from ...errors import ActorError, DataError, ModulewiseError
from ...schedules import Asynchronous, State
from ..alone import check_alone, loaded
from ..epochs import Epoch, Flow
from .exchange import Exchange, Report
from .packing import Flat, packed
from .saving import PartState, take_state
from .starting import started
from .worker import Tally, Worker

if TYPE_CHECKING:
    from ...trainer import Trainer

__all__ = ["drive"]

_GLANCE = 0.2
"""Seconds between looks at whether a part hangs."""

_START = 120.0
"""Seconds in which a process must have started, where `timeout` is less."""


class _Crew:
    """The actors of one run."""

    def __init__(self, ray: Any, trainer: Trainer, schedule: Asynchronous) -> None:
        assert schedule.actors is not None, "there are settings"
        self.ray, self.trainer, self.settings = ray, trainer, schedule.actors
        parts = len(trainer.partition)
        first = Buffer(capacity=schedule.capacity, policy=OldestFirst())
        buffers = {part: schedule.buffer() if part else first for part in range(parts)}
        groups = [buffers] if self.settings.address is None else [{part: buffers[part]} for part in buffers]
        exchange = ray.remote(num_cpus=0)(Exchange)
        self.exchanges = [exchange.remote(group) for group in groups]
        self.shelves = [self.exchanges[part % len(groups)] for part in range(parts)]
        restarts = self.settings.restarts if self.settings.folder is not None else 0
        options = {"num_cpus": self.settings.share, "num_gpus": self.settings.gpus, "max_restarts": restarts}
        worker = ray.remote(max_task_retries=restarts, **options)(Worker)
        self.kept = ray.put(trainer)
        run = uuid4().hex
        self.workers = [worker.remote([self.kept], part, self.shelves, schedule, run) for part in range(parts)]

    def muster(self) -> None:
        """Wait until every part's process is there."""
        calls = {worker.ready.remote(): part for part, worker in enumerate(self.workers)}
        ready, late = self.ray.wait(list(calls), num_returns=len(calls), timeout=max(self.settings.timeout, _START))
        for reference in ready:
            self._got(reference, calls[reference])
        if late:
            raise ActorError(
                f"the process of part {calls[late[0]]} did not start; has Ray the CPUs and GPUs that parts ask for "
                f"(share={self.settings.share:g}, gpus={self.settings.gpus:g})?",
                part=calls[late[0]],
            )

    def end(self) -> None:
        """No actor of this run stays."""
        for actor in [*self.workers, *self.exchanges]:
            with suppress(Exception):
                self.ray.kill(actor, no_restart=True)

    def learn(self, epoch: int, feed: Iterator[tuple[Entry, Any]]) -> list[tuple[Tally, bool]]:
        """One pass of every part."""
        ray = self.ray
        ray.get([shelf.open.remote(part) for part, shelf in enumerate(self.shelves)])
        runs = {worker.learn.remote(epoch): part for part, worker in enumerate(self.workers)}
        done: dict[int, tuple[Tally, bool]] = {}
        fed = self._feed(feed)
        while len(done) < len(self.workers):
            waiting = [*runs, *([fed] if fed is not None else [])]
            ready, _ = ray.wait(waiting, timeout=_GLANCE)
            for reference in ready:
                if reference in runs:
                    part = runs.pop(reference)
                    done[part] = self._got(reference, part)
                else:
                    ray.get(reference)
                    fed = self._feed(feed)
            if not ready:
                self._look(done)
        return [done[part] for part in range(len(self.workers))]

    def _feed(self, feed: Iterator[tuple[Entry, Any]]) -> Any:
        item = next(feed, None)
        if item is None:
            self.ray.get(self.shelves[0].close.remote(0))
            return None
        return self.shelves[0].put.remote(0, *item)

    def _got(self, reference: Any, part: int) -> Any:
        """What an actor gave back."""
        ray = self.ray
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ModulewiseError):
                raise error.cause from None
            said = str(error.cause).splitlines() or [""]
            raise ActorError(f"part {part} failed: {type(error.cause).__name__}: {said[0]}", part=part) from error
        except ray.exceptions.RayActorError as error:
            again = (
                f"after {self.settings.restarts} restarts" if self.settings.folder else "and Actors(folder=) is None"
            )
            raise ActorError(f"the process of part {part} died {again}; see Ray's logs", part=part) from error

    def _look(self, done: dict[int, Any]) -> None:
        """Stop where a part has been at work on one update for too long."""
        ages = {
            part: age
            for found in self.ray.get([e.ages.remote() for e in self.exchanges])
            for part, age in found.items()
        }
        for part in range(len(self.workers)):
            working, _, moved = ages[part]
            _, blocked, above = ages.get(part + 1, (None, False, moved))
            if part in done or working is None or blocked:
                continue
            still = min(working, above) if part + 1 in ages else working
            if still > self.settings.timeout:
                raise ActorError(
                    f"part {part} has not finished an update for {still:.0f} s (timeout={self.settings.timeout:g}): it "
                    "hangs or is too slow; look at its process, or give a larger timeout",
                    part=part,
                )

    def bring_home(self) -> None:
        """Put what the parts learned into the trainer of this process."""
        for part, worker in enumerate(self.workers):
            tensors, facts = self._got(worker.state.remote(), part)
            take_state(self.trainer, part, PartState({n: _copied(t) for n, t in tensors.items()}, facts))

    def reports(self) -> list[Report]:
        """What went through the buffers in this pass."""
        return [self.ray.get(shelf.report.remote(part)) for part, shelf in enumerate(self.shelves)]


def _copied(item: Flat) -> torch.Tensor:
    return item.tensor().clone()


def _flow(tallies: list[tuple[Tally, bool]], reports: list[Report], seconds: float, samples: int) -> Flow:
    stale = {part: report.stale for part, report in enumerate(reports) if part and report.stale}
    return Flow(
        duration=seconds,
        updates={part: tally.updates for part, (tally, _) in enumerate(tallies)},
        busy={part: min(1.0, tally.busy / seconds) for part, (tally, _) in enumerate(tallies)},
        staleness={part: sum(numbers) / len(numbers) for part, numbers in stale.items()},
        most_stale={part: max(numbers) for part, numbers in stale.items()},
        most_used=max(report.ledger.most_used for report in reports),
        dropped={part - 1: report.dropped for part, report in enumerate(reports) if part},
        bytes={part - 1: report.bytes for part, report in enumerate(reports) if part},
        restarted=tuple(part for part, (_, restored) in enumerate(tallies) if restored),
        samples=samples,
    )


def drive(
    trainer: Trainer, loader: Iterable[Any], *, epochs: int, schedule: Asynchronous
) -> Generator[Epoch | None, None, None]:
    """Yield an `Epoch` after every pass, with what the parts learned in the trainer; `trainer.progress` moves.

    Raises:
        ActorError: the process of a part died too often, failed or hung.
        DataError: the loader gives no batch, or the ledger is wrong.
        MethodError: Ray is missing or cannot be started, or parts cannot learn on their own.
    """
    assert schedule.actors is not None, "there are settings"
    check_alone(trainer, "asynchronous")
    parts = len(trainer.partition)
    first = trainer.progress.epoch if trainer.progress is not None else 0
    with started(schedule.actors, parts) as ray:
        crew, made, steps = _Crew(ray, trainer, schedule), [0] * parts, trainer.steps
        try:
            crew.muster()
            for epoch in range(first, epochs):
                begun = perf_counter()
                read: list[int] = []
                feed = _numbered(trainer, loader, epoch, made[0], read)
                tallies = crew.learn(epoch, feed)
                seconds, reports = perf_counter() - begun, crew.reports()
                for report in reports[:2]:
                    report.ledger.verify(epoch=epoch, samples=read)
                crew.bring_home()
                made = [before + tally.updates for before, (tally, _) in zip(made, tallies, strict=True)]
                trainer.steps = steps + max(made)
                losses = {part: tally.loss / tally.updates for part, (tally, _) in enumerate(tallies)}
                trainer.progress = State(parts, epochs, epoch=epoch + 1)
                flow = _flow(tallies, reports, seconds, len(read))
                yield Epoch(epoch, None, losses, seconds, trainer.steps, flow=flow)
        finally:
            crew.end()


def _numbered(
    trainer: Trainer, loader: Iterable[Any], epoch: int, made: int, read: list[int]
) -> Iterator[tuple[Entry, Any]]:
    """The batches of a pass with their numbers; ids are noted as they go."""
    batch = -1
    for batch, cargo in enumerate(loaded(trainer, loader)):
        read += cargo.ids.tolist()
        yield Entry(version=made + batch, epoch=epoch, batch=batch), packed(cargo)
    if batch < 0:
        raise DataError("the loader gives no batch, expected at least one; is it a spent iterator?")
