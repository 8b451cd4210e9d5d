"""Minus a pairwise objective on the Gram matrix of a boundary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import heads, losses
from ...heads.layers import grid_axes, pooled, sizes_within
from ...objective import Context, Objective, Signal
from ...partition.boundary import Boundary

__all__ = ["PairwiseProxy"]


class PairwiseProxy(Objective):
    """Minus a pairwise objective on the Gram matrix of the boundary.

    Args:
        boundary: where the objective sits.
        kernel: the kernel on flattened representations.
        maximise: the pairwise objective.
        pool: size that spatial axes are averaged to first, or None.
        projection: outputs of the head that the kernel reads, or None for no head.
    """

    def __init__(
        self,
        boundary: Boundary,
        *,
        kernel: losses.Kernel,
        maximise: losses.PairwiseObjective,
        pool: int | None = None,
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.boundary, self.kernel, self.maximise = boundary, kernel, maximise
        self.sizes = None if pool is None else sizes_within(boundary.spatial, pool)
        self.head: nn.Module | None = None
        if projection is not None:
            pool = pool or max(boundary.spatial, default=1)
            positions = torch.Size(sizes_within(boundary.spatial, pool)).numel() if grid_axes(boundary) else 1
            width = (boundary.channels * positions + projection) // 2
            self.head = heads.mlp(boundary, projection, depth=1, width=width, pool=pool)

    def forward(self, context: Context) -> Signal:
        """Minus the objective."""
        h: Tensor = context.h_out
        if self.head is not None:
            h = self.head(h)
        elif self.sizes:
            h = pooled(self.boundary.channels_first(h), self.sizes)
        gram = self.kernel.gram(h)
        value = self.maximise(gram, context.labels, minimum=self.kernel.minimum, maximum=self.kernel.maximum)
        return Signal(loss=-value)
