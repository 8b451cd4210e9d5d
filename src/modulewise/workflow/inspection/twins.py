"""The twin of a network: the same initial weights and budget, trained by end-to-end backpropagation."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from ...errors import MethodError
from ...methods import Backprop
from ...partition import Partition
from ...trainer import Trainer

__all__ = ["train_twin"]


def train_twin(trainer: Trainer, loader: Iterable[Any], *, epochs: int) -> Partition:
    """Train a copy of the trainer's network end to end: call it before the trainer has made a step.

    The copy begins with the same weights, and has the same optimisers by part, learning rates, clipping, precision and
    seed; `epochs` passes of backpropagation are as many updates of every part as `epochs` passes a part. A clipping
    norm is that of one part for a local method and of the whole gradient here, as for every `Trainer` with `Backprop`.
    The trainer, its model and the loader are as before; a loader without a position of its own is used up.

    Args:
        trainer: with parts in depth, before its first step.
        loader: batches (x, y), once an iteration; one view of every sample.
        epochs: passes over the data, >= 1.

    Returns:
        The twin's parts, cut at the same names.

    Raises:
        MethodError: the trainer has learned already, or its parts are windows of time.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.DGL(classes=3),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> twin = train_twin(trainer, [(torch.randn(6, 4), torch.arange(6) % 3)], epochs=1)
    >>> twin.cuts, torch.equal(twin.model[0].weight, model[0].weight)
    (('1',), False)
    """
    if trainer.steps:
        raise MethodError(
            f"the trainer has made {trainer.steps} steps, a twin begins with the same weights; make it before training"
        )
    if not isinstance(trainer.partition, Partition) or trainer.crew is not None or trainer.solver is not None:
        raise MethodError("a twin needs parts in depth, in one process, with an optimiser; leave it out here")
    updater, partition = trainer.updater, trainer.partition
    twin = Partition(copy.deepcopy(partition.model), cuts=list(partition.cuts), example=partition.example)
    end_to_end = Trainer(
        twin,
        Backprop(),
        loss=trainer.loss,
        optimizer=updater.factory,
        scheduler=updater.scheduler_factory,
        clip_norm=updater.clip_norm,
        precision=trainer.engine.precision,
        accumulate=trainer.accumulate,
        seed=trainer.seed,
    )
    # A loader of ours has a position: that of a copy moves, its samples are the same.
    end_to_end.fit(copy.copy(loader), epochs=epochs)
    return twin
