"""Averages of the weights of every part over its own updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import MethodError
from ...objective import Role
from ...partition import AnyPartition
from ...trainer import Trainer

__all__ = ["PartAverages"]


class PartAverages:
    """Exponential moving averages of the weights of every part, A <- decay A + (1 - decay) W after its updates.

    The first update takes the weights as they are. A part that has not been updated keeps its weights. Averages
    are in the type of the weights; buffers are not averaged: use `recalibrate` where the average is put in and the
    network has batch normalisation.

    Args:
        partition: the parts.
        decay: in [0, 1); 0.99 forgets within some hundred updates.

    Raises:
        MethodError: the decay is out of range.

    References:
        B. T. Polyak, A. B. Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM Journal on Control and
        Optimization 1992, https://doi.org/10.1137/0330046

    Departs from `torch.optim.swa_utils.AveragedModel`, which copies a whole model and counts one update for all of it.
    On all parts after every step the two agree.

    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1))
    >>> from modulewise import Partition
    >>> averages = PartAverages(Partition(model, cuts=["0"], example=torch.zeros(2, 1)), decay=0.5)
    >>> for value in (0.0, 1.0):
    ...     _ = model[0].weight.data.fill_(value)
    ...     averages.update(0)
    >>> with averages.applied():
    ...     model[0].weight.item()
    0.5
    >>> model[0].weight.item()
    1.0

    Attributes:
        updates: by part, how often it was updated.
    """

    def __init__(self, partition: AnyPartition, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise MethodError(f"decay={decay} was given, an average of weights needs one in [0, 1); try 0.99")
        self.partition, self.decay = partition, decay
        self.updates: dict[int, int] = dict.fromkeys(range(len(partition)), 0)
        self._averages: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def update(self, part: int) -> None:
        """Take in the weights that a part has now."""
        weights = [p.detach() for p in self.partition.parts[part].parameters()]
        self.updates[part] += 1
        if part not in self._averages:
            self._averages[part] = [p.clone() for p in weights]
        elif weights:
            torch._foreach_lerp_(self._averages[part], weights, 1 - self.decay)

    @contextmanager
    def following(self, trainer: Trainer) -> Iterator[None]:
        """Within the block every step of a part's optimiser updates its average, whatever the schedule.

        Args:
            trainer: of this partition, in one process.

        Raises:
            MethodError: the trainer has other parts, or no optimisers.
        """
        if trainer.partition is not self.partition or trainer.solver is not None or trainer.crew is not None:
            raise MethodError("averages follow a trainer of the same partition, in one process, with optimisers")

        def after(part: int, *_: Any) -> None:
            self.update(part)

        with ExitStack() as stack:
            for part in range(len(self.partition)):
                optimizer = trainer.updater.optimizer(part, Role.PART)
                if optimizer is not None:
                    stack.callback(optimizer.register_step_post_hook(partial(after, part)).remove)
            yield

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averages for weights; then its own again, also after an error."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for part, averages in self._averages.items():
            for parameter, average in zip(self.partition.parts[part].parameters(), averages, strict=True):
                before = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(before)
