"""An asynchronous schedule in one process: the parts at their own pace on a simulated clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..buffers import Ledger
from ..errors import DataError
from ..schedules import Asynchronous, Event, State, Work
from ..schedules.lanes import Lanes
from .alone import Cargo, Solo, check_alone, loaded
from .epochs import Epoch, Flow, Pass

if TYPE_CHECKING:
    from ..trainer import Trainer

__all__ = ["simulate"]


class _Simulation:
    def __init__(self, trainer: Trainer, schedule: Asynchronous) -> None:
        self.trainer, self.schedule = trainer, schedule
        parts = range(len(trainer.partition))
        self.solos = [Solo(trainer, part, wire=schedule.wire) for part in parts]
        self.cargo: list[dict[int, Cargo]] = [{} for _ in parts]
        self.base = trainer.steps
        self.start_pass()

    def start_pass(self) -> None:
        """Forget what the last pass came to."""
        self.sums = Pass()
        self.ledgers = [Ledger(reuse=self.schedule.reuse) for _ in self.solos]
        self.stale: dict[int, list[int]] = {solo.part: [] for solo in self.solos}
        self.bytes: Counter[int] = Counter()
        self.read: list[int] = []

    def work(self, state: State, work: Work, batches: Iterator[Cargo]) -> bool:
        """Let a part learn from its batch; False where part 0 finds none."""
        part = work.part
        assert state.lanes is not None, "a part is at work"
        lane = state.lanes.lanes[part]
        if part == 0:
            cargo = next(batches, None)
            if cargo is None:
                return False
            self.read += cargo.ids.tolist()
        else:
            cargo = self._taken(state, part - 1, work.upstream)
            assert lane.source is not None, "it is at work on an entry"
            self.ledgers[part - 1].use(lane.source)
            self.stale[part].append(lane.staleness)
        loss, made = self.solos[part].learn(cargo, step=self.base + lane.updates)
        self.sums.add({part: loss})
        self.trainer.steps = max(self.trainer.steps, self.base + lane.updates + 1)
        if made is not None:
            self.cargo[part][lane.updates] = made
            self.bytes[part] += made.bytes
            self.ledgers[part].enter(work.epoch, made.ids.tolist())
        return True

    def _taken(self, state: State, boundary: int, version: int) -> Cargo:
        """The batch of an entry; those that have left the buffer are let go."""
        assert state.lanes is not None, "a part is at work"
        kept, buffer = self.cargo[boundary], state.lanes.buffers[boundary]
        cargo = kept[version]
        inside = {entry.version for entry in buffer.entries}
        self.cargo[boundary] = {v: c for v, c in kept.items() if v in inside or v >= buffer.written}
        return cargo

    def end_pass(self, epoch: int, before: State, after: State) -> Epoch:
        """Learning rates move; what the pass came to."""
        for solo in self.solos:
            self.trainer.updater.epoch_end(solo.part)
            self.cargo[solo.part].clear()
        if len(self.solos) > 1:
            self.ledgers[0].verify(epoch=epoch, samples=self.read)
        seconds = self.sums.seconds()
        record = Epoch(epoch, None, self.sums.mean(), seconds, self.trainer.steps, flow=self._flow(before, after))
        self.start_pass()
        return record

    def _flow(self, before: State, after: State) -> Flow:
        assert after.lanes is not None, "parts have worked"
        lanes, earlier = after.lanes, before.lanes
        now, then = _worked(lanes), _worked(earlier) if earlier else [(0.0, 0)] * len(self.solos)
        drops = [buffer.dropped for buffer in earlier.buffers] if earlier else [0] * len(lanes.buffers)
        duration = lanes.now - (earlier.now if earlier else 0.0)
        stale = {part: numbers for part, numbers in self.stale.items() if numbers}
        return Flow(
            duration=duration,
            updates={
                part: made - earlier for part, ((_, made), (_, earlier)) in enumerate(zip(now, then, strict=True))
            },
            busy={part: (b - a) / duration for part, ((b, _), (a, _)) in enumerate(zip(now, then, strict=True))},
            staleness={part: sum(numbers) / len(numbers) for part, numbers in stale.items()},
            most_stale={part: max(numbers) for part, numbers in stale.items()},
            most_used=max(ledger.most_used for ledger in self.ledgers),
            dropped={index: buffer.dropped - drops[index] for index, buffer in enumerate(lanes.buffers)},
            bytes=dict(self.bytes),
            samples=len(self.read),
        )


def _worked(lanes: Lanes) -> list[tuple[float, int]]:
    """For every part the ticks it has worked and its updates, without what it has just started on."""
    ahead = [lane.until - lanes.now if lane.source is not None else 0.0 for lane in lanes.lanes]
    return [(lane.busy - more, lane.updates) for lane, more in zip(lanes.lanes, ahead, strict=True)]


def simulate(
    trainer: Trainer, loader: Iterable[Any], *, epochs: int, schedule: Asynchronous
) -> Generator[Epoch | None, None, None]:
    """Yield None after every update and an `Epoch` after every pass; `trainer.progress` says which pass is next.

    Raises:
        DataError: the loader gives no batch.
        MethodError: parts cannot learn on their own.
    """
    check_alone(trainer, "asynchronous")
    schedule.slow_downs(len(trainer.partition))
    state = schedule.start(parts=len(trainer.partition), epochs=epochs)
    if trainer.progress is not None:
        state = replace(state, epoch=trainer.progress.epoch)
    simulation, batches, before = _Simulation(trainer, schedule), iter(loaded(trainer, loader)), state
    state, work = schedule.next(state, Event.START)
    while work is not None:
        if simulation.work(state, work, batches):
            epoch, (state, work) = work.epoch, schedule.next(state, Event.DONE)
            yield None
        elif work.batch == 0:
            raise DataError("the loader gives no batch, expected at least one; is it a spent iterator?")
        else:
            epoch, (state, work) = work.epoch, schedule.next(state, Event.EXHAUSTED)
        if work is None or work.epoch != epoch:
            record, before = simulation.end_pass(epoch, before, state), state
            batches = iter(loaded(trainer, loader))
            trainer.progress = State(state.parts, state.epochs, epoch=epoch + 1)
            yield record
