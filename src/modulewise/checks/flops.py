"""Floating-point operations of a training step."""

from __future__ import annotations

from typing import Any

from ..metering.operations import counted_flops
from ..seeding import preserved_generators
from ..trainer import Trainer
from .state import Snapshot

__all__ = ["counted_flops", "flops"]


def flops(trainer: Trainer, x: Any, y: Any, *, views: int = 1) -> int | None:
    """The floating-point operations of one training step; the trainer is as before afterwards.

    A multiplication and an addition are two operations. Counted are matrix products, convolutions and attention, by
    the formulas of `torch.utils.flop_counter`, forward, backward and recomputed; products with vectors, distances of
    all pairs, and factorisations and solutions of linear systems, by the leading terms of Golub and Van Loan, Matrix
    Computations (4th edition, 2013). Not counted is what takes a few operations an element: activations, normalisation,
    pooling, sums, losses, optimisers, draws, indexing; nor kernels from outside torch's operators. While a part with
    delayed gradients has no batch to learn from yet, a step does less.

    Args:
        trainer: any.
        x: input (views N, ...).
        y: labels (N, ...).
        views: views of every sample stacked along the batch of x.

    Returns:
        The count; None where the step does nothing that is counted, or cannot be watched.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> trainer = mw.Trainer(
    ...     mw.Partition(model, cuts=["1"], example=torch.randn(2, 4)),
    ...     mw.methods.Backprop(),
    ...     loss=torch.nn.functional.cross_entropy,
    ...     optimizer=torch.optim.SGD,
    ... )
    >>> x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> mw.checks.flops(trainer, x, y) == 2 * 6 * (2 * 4 * 8 + 3 * 8 * 3)
    True
    """
    start = Snapshot(trainer)
    with preserved_generators():
        try:
            return counted_flops(lambda: trainer.step(x, y, views=views))
        finally:
            start.restore()
