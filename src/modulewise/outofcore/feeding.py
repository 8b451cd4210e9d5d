"""Batches with the boundaries that frozen parts make of them: run again part by part, or kept by sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..engine.features import evaluating
from ..errors import DataError
from ..partition import Partition
from ..partition.tree import batch_size, plain, signature, tensors
from ..schedules import Work
from .caching import Store
from .holdings import Holdings, placed
from .learning import Learner
from .shards import Reader

__all__ = ["Cached", "Fed", "Feed", "Frozen", "Recomputed"]


@dataclass(frozen=True)
class Fed:
    """One batch, ready for the part in training.

    Args:
        x: the model's input, as the method wants it.
        y: labels.
        views: views stacked along the batch.
        boundaries: what the part reads, by index.
        position: the loader's state after this batch; None where it has none.
    """

    x: Any
    y: Any
    views: int
    boundaries: dict[int, Tensor]
    position: Any


class Frozen:
    """Runs parts in eval mode, without gradients, one in memory at a time while the next one is read.

    Args:
        partition: the parts.
        holdings: what belongs to which.
        reader: where their values come from.
        learner: for its precision.
    """

    def __init__(self, partition: Partition, holdings: Holdings, reader: Reader, learner: Learner) -> None:
        self.partition, self.holdings, self.reader, self.learner = partition, holdings, reader, learner
        self.present: int | None = None
        self.expected = signature(partition.example)

    def check(self, x: Any) -> None:
        """Refuse an input that is not like the example, by which the model was cut."""
        if signature(x) != self.expected:
            raise DataError(
                f"x is {_shapes(x)}, expected {_shapes(self.partition.example)} but for the number of samples, as the "
                "partition's example; make the partition with such an input"
            )

    def run(self, first: int, stop: int, batches: Sequence[Any], known: Sequence[dict[int, Tensor]]) -> None:
        """Run parts first to stop - 1 on several batches, each part on all of them before the next one.

        Args:
            first: the first part to run.
            stop: the part to stop before; K for the model's output, as boundary K - 1.
            batches: inputs x (N, ...).
            known: for each the boundaries at hand; what was made is added, what no later part reads is dropped.
        """
        others = [part for part in range(first, stop) if part != self.present]
        streamed = self.reader.stream(others, present=self.present)
        for part in range(first, stop):
            values = next(streamed)[1] if part != self.present else {}
            with placed(self.holdings, values):
                del values
                self.through(part, batches, known, until=stop)

    def through(self, part: int, batches: Sequence[Any], known: Sequence[dict[int, Tensor]], *, until: int) -> None:
        """Run one part that the model holds on several batches."""
        with torch.no_grad(), evaluating(self.partition.model):
            for x, boundaries in zip(batches, known, strict=True):
                plans = self.partition.plans(x)
                with self.learner.engine.autocast(tensors(x)[0].device.type):
                    fed = {index: boundaries[index] for index in plans[part].reads}
                    boundaries[part] = self.partition.run(part, x, fed, plan=plans[part])
                read = {index for plan in plans[part + 1 :] for index in plan.reads} | {part, until - 1}
                for index in [index for index in boundaries if index not in read]:
                    del boundaries[index]


def _shapes(x: Any) -> str:
    return ", ".join(f"{leaf.dtype} {tuple(leaf.shape)}".replace("torch.", "") for leaf in tensors(x))


class Feed(ABC):
    """Gives the part in training its batches.

    Args:
        loader: batches (x, y).
        frozen: runs the parts below.
    """

    def __init__(self, loader: Any, frozen: Frozen) -> None:
        self.loader, self.frozen = loader, frozen

    def prepare(self, part: int) -> None:  # noqa: B027 - what is run again needs nothing
        """Make ready for the passes of a part."""

    @abstractmethod
    def batches(self, work: Work) -> Iterator[Fed]:
        """What is left of a pass, after `work.batch` batches."""

    def rest(self, work: Work, source: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """What a pass has left, each with the loader's state after it; the loader stands where it stopped."""
        stateful = hasattr(self.loader, "load_state_dict")
        if work.batch and stateful and isinstance(self.loader, Sized) and work.batch >= len(self.loader):
            return  # the loader stands at the start of the next pass
        for item in source if stateful else islice(source, work.batch, None):
            yield item, self.loader.state_dict() if stateful else None

    def fed(self, x: Any, y: Any, position: Any, *, ahead: int = 0) -> Fed:
        """A batch before its boundaries are made."""
        x, views = self.frozen.learner.views(x, y, views=getattr(self.loader, "views", 1), ahead=ahead)
        x = plain(x)
        self.frozen.check(x)
        return Fed(x, y, views, {}, position)


class Recomputed(Feed):
    """The parts below run again for every batch.

    Args:
        loader: batches (x, y).
        frozen: runs the parts below.
        together: batches that go through them together, >= 1.
    """

    def __init__(self, loader: Any, frozen: Frozen, *, together: int) -> None:
        super().__init__(loader, frozen)
        self.together = together

    def batches(self, work: Work) -> Iterator[Fed]:
        """See `Feed`."""
        source = self.rest(work, self.loader)
        # Part 0 has nothing below it: no batch need be read before its turn.
        while group := list(islice(source, self.together if work.part else 1)):
            some = [self.fed(x, y, position, ahead=ahead) for ahead, ((x, y), position) in enumerate(group)]
            self.frozen.run(0, work.part, [fed.x for fed in some], [fed.boundaries for fed in some])
            while some:
                fed = some.pop(0)
                needed = self.frozen.partition.reads(fed.x, work.part)
                for index in [index for index in fed.boundaries if index not in needed]:
                    del fed.boundaries[index]
                yield fed


class Cached(Feed):
    """The boundary below the part, kept by sample.

    Args:
        loader: `mw.data.Loader`, not augmented.
        frozen: runs the parts below.
        store: keeps one boundary.
    """

    def __init__(self, loader: Any, frozen: Frozen, store: Store) -> None:
        super().__init__(loader, frozen)
        self.store = store

    def prepare(self, part: int) -> None:
        """Bring the store to the boundary below a part, one part after another."""
        count = len(self.loader.split)
        missing = range(self.store.index + 1, part)
        for boundary, values in self.frozen.reader.stream(missing, present=part):

            def compute(indices: Tensor, x: Any, boundary: int = boundary) -> Tensor:
                known = {boundary - 1: self._rows(indices, x)} if boundary else {}
                x = plain(x)
                self.frozen.check(x)
                self.frozen.through(boundary, [x], [known], until=boundary + 1)
                return known[boundary]

            with placed(self.frozen.holdings, values):
                self.store.advance(boundary, count, self.loader.indexed(), compute)

    def batches(self, work: Work) -> Iterator[Fed]:
        """See `Feed`."""
        for (indices, x, y), position in self.rest(work, self.loader.with_indices()):
            fed = self.fed(x, y, position)
            if work.part:
                fed.boundaries[work.part - 1] = self._rows(indices, x)
            yield fed

    def _rows(self, indices: Tensor, x: Any) -> Tensor:
        assert batch_size(x) == len(indices), "one index a sample"
        return self.store.rows(indices.cpu()).to(tensors(x)[0].device)
