"""What the parts below a part in training give it, when those parts are final: recomputed, or kept by sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..method import Method
from ..partition import AnyPartition
from ..partition.tree import batch_size, tensors

__all__ = ["FeatureCache", "comes_back", "evaluating", "frozen_boundaries"]


def comes_back(partition: AnyPartition, method: Method, loader: Any) -> bool:
    """Whether a sample looks the same in every pass and feeds the next part by one boundary: then that may be kept."""
    unchanged = not getattr(loader, "augmented", True) and getattr(loader, "views", 1) == 1
    return hasattr(loader, "indexed") and unchanged and not method.makes_views and not partition.ports


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode for the block; each module's own mode is back on exit."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, mode in modes:
            if mode:
                module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def frozen_boundaries(partition: AnyPartition, part: int, x: Any, known: dict[int, Tensor]) -> dict[int, Tensor]:
    """The boundaries below a part, made by the parts below it in eval mode without gradients.

    Args:
        partition: the parts.
        part: the part to feed.
        x: input (N, ...).
        known: boundaries at hand already, by index.
    """
    boundaries = dict(known)
    plans = partition.plans(x)
    with torch.no_grad(), evaluating(partition.model):
        for below in range(max(boundaries, default=-1) + 1, part):
            fed = {index: boundaries[index] for index in plans[below].reads}
            boundaries[below] = partition.run(below, x, fed, plan=plans[below])
    return boundaries


class FeatureCache:
    """The boundary below one part for every sample of a data set, in host memory.

    Args:
        limit_bytes: most bytes to keep; a boundary that needs more is not kept.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.index = -1
        self.features: Tensor | None = None

    def advance(
        self, partition: AnyPartition, boundary: int, batches: Iterable[tuple[Tensor, Any, Any]], count: int
    ) -> bool:
        """Fill the cache with a boundary, from the boundary it holds now.

        Args:
            partition: the parts.
            boundary: index of the boundary to keep.
            batches: (indices (N,), x, y) over the whole data set, once, not augmented.
            count: number of samples.

        Returns:
            Whether the boundary fits and is kept.
        """
        shape = partition.part(boundary).output
        assert shape is not None
        if shape.features * shape.dtype.itemsize * count > self.limit_bytes:
            self.features, self.index = None, -1
            return False
        kept: Tensor | None = None
        for indices, x, _ in batches:
            known = {self.index: self.rows(indices, x)} if self.features is not None else {}
            h = frozen_boundaries(partition, boundary + 1, x, known)[boundary].cpu()
            if kept is None:
                kept = torch.empty((count, *h.shape[1:]), dtype=h.dtype)
            kept[indices.cpu()] = h
        self.features, self.index = kept, boundary
        return kept is not None

    def rows(self, indices: Tensor, x: Any) -> Tensor:
        """The kept boundary (N, ...) of some samples, on the device of their input."""
        assert self.features is not None
        device = tensors(x)[0].device
        assert batch_size(x) == len(indices), "one index a sample"
        return self.features[indices.cpu()].to(device)
