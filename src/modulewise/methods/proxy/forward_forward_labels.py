"""Labels inside samples: writing one, and telling classes by the goodness that each would have."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import losses
from ...partition import Partition

__all__ = ["class_goodness", "with_label"]


def with_label(x: Tensor, y: Tensor, *, classes: int) -> Tensor:
    """The input with its first `classes` elements replaced by the one-hot label, in x's least and largest value.

    Args:
        x: input (N, ...), of at least `classes` elements a sample.
        y: class indices (N,).
        classes: number of classes.

    >>> with_label(torch.tensor([[5.0, 7.0, 9.0]]), torch.tensor([1]), classes=2)
    tensor([[5., 9., 9.]])
    """
    marked = x.flatten(1).clone()
    marked[:, :classes] = x.min()
    marked[torch.arange(len(y), device=x.device), y] = x.max()
    return marked.view_as(x)


@torch.no_grad()
def class_goodness(partition: Partition, x: Tensor, *, classes: int) -> Tensor:
    """The goodness of every class, summed over parts 1 to K - 2 (or of part 0): its argmax is the prediction.

    One pass a class; eval mode is the caller's care.

    Args:
        partition: K >= 2 parts; the last, a classifier, is not run.
        x: input (N, ...).
        classes: number of classes.

    Returns:
        (N, classes).
    """
    totals = []
    for label in range(classes):
        h, found = with_label(x, torch.full((len(x),), label, device=x.device), classes=classes), []
        for part in partition.parts[:-1]:
            h = part(h, x=x)
            found.append(losses.goodness(h))
        totals.append(torch.stack(found[1:] or found).sum(0))
    return torch.stack(totals, 1)
