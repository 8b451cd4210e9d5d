"""The iterations of dlADMM, as `FullBatchSolver` asks for them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .blocks import Blocks
from .dladmm_updates import Curvatures, dladmm_shares, dladmm_sweep
from .full_batch_solver import Sweeps

__all__ = ["BackwardForwardSweeps"]


class BackwardForwardSweeps(Sweeps):
    """Steps from the last layer down and up again, then the multiplier.

    Args:
        curvatures: weights of the penalties, and where backtracking starts.
    """

    multiplier: ClassVar[bool] = True

    def __init__(self, curvatures: Curvatures) -> None:
        self._curvatures = curvatures

    def sweep(self, blocks: Blocks, targets: Tensor, *, step: int, kept: Tensor | None = None) -> Blocks:
        """One iteration."""
        return dladmm_sweep(blocks, targets, self._curvatures)

    def shares(self, blocks: Blocks, targets: Tensor) -> Tensor:
        """Every layer's terms of the augmented Lagrangian."""
        return dladmm_shares(blocks, targets, self._curvatures)
