"""Statistics of batch normalisation, taken anew part by part on the network as it ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ...engine.features import evaluating, frozen_boundaries
from ...errors import DataError
from ...partition import Partition
from ...partition.tree import plain
from ...seeding import preserved_generators

__all__ = ["recalibrate"]


def recalibrate(partition: Partition, loader: Iterable[Any], *, parts: Sequence[int] | None = None) -> int:
    """Replace the running means and variances of batch normalisation by those of one pass, in order of the parts.

    A part's statistics are plain means over the batches of one pass, with the parts below in eval mode and their new
    statistics: what the part will meet. That is one pass a part. Weights, modes, momenta and generators are put back;
    buffers of batch normalisation alone change.

    Args:
        partition: the parts.
        loader: batches (x, y), iterated once a part; one view, not augmented unless the network will see such inputs.
        parts: which, all where left out.

    Returns:
        How many modules were recalibrated.

    Raises:
        DataError: the loader gives no batch.

    Departs from `torch.optim.swa_utils.update_bn`, whose single pass normalises the layers below by the statistics of
    the batch and has dropout in train mode: here only the modules of one part are in train mode, nothing else. The two
    agree on a network of one part without dropout.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    >>> partition = Partition(model, cuts=["0"], example=torch.randn(4, 2))
    >>> recalibrate(partition, [(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), None)]), model[0].running_mean.tolist()
    (1, [1.0, 2.0])
    """
    count = 0
    for part in range(len(partition)) if parts is None else sorted(set(parts)):
        norms = _norms(partition, part)
        if norms:
            _recalibrate_part(partition, loader, part, norms)
        count += len(norms)
    return count


def _norms(partition: Partition, part: int) -> list[_BatchNorm]:
    inside = (m for _, outer in partition.part(part).modules() for m in outer.modules())
    return [m for m in dict.fromkeys(inside) if isinstance(m, _BatchNorm) and m.track_running_stats]


def _recalibrate_part(partition: Partition, loader: Iterable[Any], part: int, norms: Sequence[_BatchNorm]) -> None:
    before = {m: ([b.clone() for b in m.buffers()], m.momentum) for m in norms}
    seen, modes = 0, [(module, module.training) for module in partition.model.modules()]
    try:
        with torch.no_grad(), preserved_generators(), evaluating(partition.model):
            for m in norms:
                m.reset_running_stats()
                m.momentum = None  # a plain mean over batches
            for x, _ in loader:
                x = plain(x)
                boundaries = frozen_boundaries(partition, part, x, {})
                for m in norms:
                    m.training = True
                fed = {index: boundaries[index] for index in partition.reads(x, part)}
                partition.run(part, x, fed)
                for m in norms:
                    m.training = False
                seen += 1
    finally:
        for m, (buffers, momentum) in before.items():
            m.momentum = momentum
            if seen == 0:
                for buffer, old in zip(m.buffers(), buffers, strict=True):
                    buffer.copy_(old)
        for module, mode in modes:
            module.training = mode
    if seen == 0:
        raise DataError("the loader gives no batch, expected at least one; a generator is spent after the first part")
