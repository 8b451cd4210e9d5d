"""Balanced draws: n labelled samples of every class."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...errors import DataError

__all__ = ["balanced"]


def balanced(labels: Tensor, *, per_class: int, classes: int, seed: int) -> Tensor:
    """Indices of n samples of every class, drawn evenly without replacement.

    Args:
        labels: (N,) int64.
        per_class: n >= 1.
        classes: C; labels are 0 to C - 1.
        seed: of the draw; torch's generators stay where they are.

    Returns:
        (C n,), the classes one after another.

    Raises:
        DataError: n is below 1, or larger than a class.

    >>> balanced(torch.tensor([1, 0, 1, 0]), per_class=2, classes=2, seed=0).sort().values.tolist()
    [0, 1, 2, 3]
    """
    counts = torch.bincount(labels.cpu(), minlength=classes)
    smallest = int(counts[:classes].argmin())
    if not 1 <= per_class <= int(counts[smallest]):
        raise DataError(
            f"{per_class} examples per class were asked for, class {smallest} has {int(counts[smallest])}; expected 1 "
            f"to {int(counts[smallest])}"
        )
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    by_class = order[shuffled.argsort(stable=True)]
    starts = counts.cumsum(0)[:classes] - counts[:classes]
    return by_class[(starts[:, None] + torch.arange(per_class)).flatten()]
