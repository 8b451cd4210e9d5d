"""One run of the sequential schedule over parts in a folder: open a part, train it, keep it, go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..checkpoint import describe
from ..engine.epochs import Epoch, Pass
from ..engine.plainly import decoded
from ..errors import CheckpointError, DataError
from ..schedules import Event, State, Work, sequential
from .caching import FeatureSource
from .choosing import chosen, feed_of
from .feeding import Cached, Fed
from .holdings import placed
from .saving import Saved

if TYPE_CHECKING:
    from .training import OutOfCore

__all__ = ["Fit"]


class Fit:
    """See `OutOfCore.fit`."""

    def __init__(
        self,
        run: OutOfCore,
        loader: Iterable[Any],
        *,
        epochs: int,
        features: FeatureSource | None,
        every: int | None,
        callbacks: Sequence[Callable[[Epoch], None]],
    ) -> None:
        self.training, self.loader, self.every, self.callbacks = run, loader, every, callbacks
        self.learner, self.holdings = run.learner, run.holdings
        self.saved = run.saved.read()
        self.state = sequential.start(parts=len(run.partition), epochs=epochs)
        self.position = loader.state_dict() if hasattr(loader, "state_dict") else None
        kept = None if self.saved is None else self._go_on(self.saved, epochs)
        self.source = chosen(features, kept, loader=loader, epochs=epochs, frozen=run.frozen, folder=run.folder)
        self.feed = feed_of(self.source, loader=loader, frozen=run.frozen, folder=run.folder / "features")
        if self.saved is None:
            self.learner.steps = 0
            self._save(self.state, final=False)

    def _go_on(self, saved: Saved, epochs: int) -> dict[str, Any]:
        """Stand where the run stopped; the setting of features that it began with."""
        if saved.progress.epochs != epochs:
            raise CheckpointError(
                f"the run in {self.training.folder} began with epochs={saved.progress.epochs}, here it is {epochs}; "
                "give that, or a new folder"
            )
        self.state, self.learner.steps = saved.progress, saved.facts["step"]
        self.learner.updater.steps = {int(part): count for part, count in saved.facts["updates"].items()}
        if saved.facts["loader"] is not None and hasattr(self.loader, "load_state_dict"):
            self.position = decoded(saved.facts["loader"])
            self.loader.load_state_dict(self.position)
        features: dict[str, Any] = saved.facts["features"]
        return features

    def run(self) -> list[Epoch]:
        """Train what is left."""
        history: list[Epoch] = []
        if self.saved is not None and self.saved.part is not None and self.saved.final:
            # The process died between the end of a part and the part's own file: that is written now.
            with self._opened(self.saved.part):
                self._finish(self.saved.part)
        state, work = sequential.next(self.state, Event.START)
        while work is not None:
            part = work.part
            with self._opened(part):
                self.feed.prepare(part)
                while work is not None and work.part == part:
                    state, following, epoch = self._pass(state, work)
                    final = following is None or following.part != part
                    if final or self.every is None:
                        self._save(state, final=final)
                    history.append(epoch)
                    for callback in self.callbacks:
                        callback(epoch)
                    work = following
                self.state = state
                self._finish(part)
        if isinstance(self.feed, Cached):
            self.feed.store.clear()
        return history

    @contextmanager
    def _opened(self, part: int) -> Iterator[None]:
        """Let the model hold a part that trains, as saved or else as drawn, and begin to read the next one."""
        saved = self._saved(part)
        reader, frozen = self.training.reader, self.training.frozen
        if saved is not None:
            reader.ahead(part + 1)
            values = {name: tensor.clone().to(self.learner.device) for name, tensor in saved.tensors["part"].items()}
            values |= self.training.shards.borrowed(part, self.learner.device)
        else:
            values = reader.take(part)
            reader.ahead(part + 1)
        try:
            with placed(self.holdings, values):
                del values
                frozen.present = part
                self.learner.open(part)
                if saved is not None:
                    saved.restore(self.learner)
                yield
        finally:
            frozen.present = None
            self.learner.close()
            self.saved = None

    def _saved(self, part: int) -> Saved | None:
        return self.saved if self.saved is not None and self.saved.part == part else None

    def _pass(self, state: State, work: Work) -> tuple[State, Work | None, Epoch]:
        """What is left of one pass of the part at hand."""
        sums, started, part, epoch = Pass(), perf_counter(), work.part, work.epoch
        following: Work | None = work
        for fed in self.feed.batches(work):
            sums.add(self._step(part, fed))
            state, following = sequential.next(state, Event.DONE)
            if self.every is not None and self.learner.steps % self.every == 0:
                self._save(state, final=False)
        if following is work and work.batch == 0:
            raise DataError("the loader gives no batch, expected at least one; is it a spent iterator?")
        state, following = sequential.next(state, Event.EXHAUSTED)
        self.learner.updater.epoch_end(part)
        seconds = perf_counter() - started
        return state, following, Epoch(epoch, part, sums.mean(), seconds, self.learner.steps)

    def _step(self, part: int, fed: Fed) -> Any:
        losses = self.learner.step(part, fed.x, fed.y, views=fed.views, boundaries=fed.boundaries)
        self.position = fed.position
        return losses

    def _finish(self, part: int) -> None:
        """Keep a part that is final, then say so: killed in between, the part is kept again."""
        self.training.keep(part, self.holdings.present(part), self.learner.objectives[part])
        self.learner.close()
        self._save(self.state, final=False)

    def _save(self, state: State, *, final: bool) -> None:
        index = self.learner.objectives.at
        self.training.saved.write(
            self.learner,
            state,
            part={} if index is None else self.holdings.present(index),
            position=self.position,
            features=describe(self.source),
            final=final,
        )
