"""The sweeps of block coordinate descent, as `FullBatchSolver` asks for them."""

from __future__ import annotations

from torch import Tensor

from .bcd_updates import Penalties, bcd_shares, bcd_sweep
from .blocks import Blocks, input_products
from .full_batch_solver import Sweeps

__all__ = ["CoordinateSweeps"]


class CoordinateSweeps(Sweeps):
    """Closed-form sweeps from the last layer to the first.

    Args:
        penalties: weights of the objective's penalties.
    """

    def __init__(self, penalties: Penalties) -> None:
        self._penalties = penalties

    def kept(self, blocks: Blocks) -> Tensor:
        """The inner products of the input."""
        return input_products(blocks)

    def sweep(self, blocks: Blocks, targets: Tensor, *, step: int, kept: Tensor | None = None) -> Blocks:
        """One sweep."""
        return bcd_sweep(blocks, targets, self._penalties, products=kept)

    def shares(self, blocks: Blocks, targets: Tensor) -> Tensor:
        """Every layer's terms of F."""
        return bcd_shares(blocks, targets, self._penalties)
