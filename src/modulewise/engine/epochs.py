"""What one pass over the data came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from .evaluating import Evaluation

__all__ = ["Epoch", "Flow", "Pass"]


@dataclass(frozen=True)
class Flow:
    """How batches went from part to part in one pass of an asynchronous schedule.

    Args:
        duration: of the pass: simulated ticks, or seconds where parts are processes.
        updates: of every part; more than batches where a part used some again, fewer where some were dropped.
        busy: for every part its share of the duration at work, 0 to 1.
        staleness: for every part but the first, how many updates the part below had made since the one that wrote the
            batch, on average over the part's updates.
        most_stale: the largest of these numbers.
        most_used: the most uses of one batch by one part.
        dropped: batches that left a buffer unused, by the boundary.
        bytes: what crossed every boundary: packets, labels, ids and x where it is needed.
        restarted: parts whose process went on from a checkpoint, since the run began.
        samples: how many samples entered the first buffer, each exactly once.
    """

    duration: float
    updates: Mapping[int, int]
    busy: Mapping[int, float]
    staleness: Mapping[int, float]
    most_stale: Mapping[int, int]
    most_used: int
    dropped: Mapping[int, int]
    bytes: Mapping[int, int]
    restarted: tuple[int, ...] = ()
    samples: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data came to.

    Args:
        epoch: index of the pass.
        part: the part in training, or None where all were.
        losses: mean loss of every part that learned; of a pass resumed from a checkpoint, over the batches since then.
        seconds: wall time of the pass, validation apart.
        steps: training steps so far.
        validation: loss and accuracy on the validation batches, if given; with a part in training, of the whole model
            as it is.
        flow: how batches went from part to part, under an asynchronous schedule.
    """

    epoch: int
    part: int | None
    losses: dict[int, float]
    seconds: float
    steps: int
    validation: Evaluation | None = None
    flow: Flow | None = None


class Pass:
    """Sums of one pass."""

    def __init__(self) -> None:
        self.started = perf_counter()
        self.sums: dict[int, Tensor] = {}
        self.counts: Counter[int] = Counter()

    def add(self, losses: dict[int, Tensor]) -> None:
        """The losses of one step."""
        self.counts.update(losses.keys())
        for part, loss in losses.items():
            self.sums[part] = self.sums[part] + loss if part in self.sums else loss.clone()

    def seconds(self) -> float:
        """Wall time since it began."""
        return perf_counter() - self.started

    def mean(self) -> dict[int, float]:
        """The mean loss of every part."""
        return {part: float(total) / self.counts[part] for part, total in sorted(self.sums.items())}
