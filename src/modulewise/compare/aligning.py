"""The angle to end-to-end backpropagation in the course of a run, on one fixed batch of training data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .. import checks
from ..errors import ModulewiseError
from ..methods import Backprop, Checkpointed
from ..trainer import Trainer
from .assembling import Workshop
from .experiment import Configuration

__all__ = ["Aligning", "moments"]

_MOST = 8


def moments(passes: int, *, once: bool = False) -> frozenset[int]:
    """After how many passes to measure: before the first, and after at most eight spread evenly, the last among them.

    Args:
        passes: of the whole run, >= 1.
        once: before the first alone.

    >>> sorted(moments(3)), sorted(moments(100)), sorted(moments(5, once=True))
    ([0, 1, 2, 3], [0, 12, 25, 38, 50, 62, 75, 88, 100], [0])
    """
    count = min(_MOST, passes)
    return frozenset({0} if once else (round(index * passes / count) for index in range(count + 1)))


class Aligning:
    """Measures every part's update against end-to-end backpropagation's, before training and after some passes.

    Each time costs about three steps on one batch of the experiment's size, not augmented where the method takes one
    view. A method that wants all samples is measured before training alone: later, its variables belong to the whole
    training set. End-to-end backpropagation itself is left out.

    Args:
        workshop: whose training data is used.
        trainer: what is trained; it is as before after every measurement.
        row: which configuration it is.
    """

    def __init__(self, workshop: Workshop, trainer: Trainer, row: Configuration) -> None:
        self._workshop, self._trainer, self._row = workshop, trainer, row
        passes = workshop.experiment.epochs * row.order.passes(row.parts)
        self._moments = moments(passes, once=row.full_batch)
        if isinstance(trainer.method, Backprop | Checkpointed):
            self._moments = frozenset()
        self._batch: tuple[Tensor, Tensor] | None = None

    def after(self, passes: int) -> dict[str, list[float | None]] | None:
        """`angle` (degrees), `cosine` and `ratio` of every part; None where it is not the moment or cannot be done.

        Args:
            passes: finished so far.
        """
        if passes not in self._moments:
            return None
        if self._batch is None:
            self._batch = self._workshop.batch(self._workshop.experiment.batch_size, views=self._row.views)
        try:
            with _training(self._trainer.partition.model):
                parts = checks.alignment(self._trainer, *self._batch, views=self._row.views).parts
        except ModulewiseError:
            return None  # a loss that is not finite, or a step that this batch does not allow
        return {name: [getattr(part, name) for part in parts] for name in ("angle", "cosine", "ratio")}


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Every module in train mode for the block; each module's own mode is back on exit."""
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
