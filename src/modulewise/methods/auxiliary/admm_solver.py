"""The iterations of ADMM, as `FullBatchSolver` asks for them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .admm_updates import Weights, admm_shares, admm_sweep, regularised_inverse
from .blocks import Blocks, with_ones
from .full_batch_solver import Sweeps

__all__ = ["MultiplierSweeps"]


class MultiplierSweeps(Sweeps):
    """Closed-form iterations from the first layer to the last, then the multiplier.

    Args:
        weights: of the objective's terms.
        warm_start: steps in which the multiplier stays zero, >= 0.
    """

    multiplier: ClassVar[bool] = True

    def __init__(self, weights: Weights, *, warm_start: int) -> None:
        self._weights, self._warm_start = weights, warm_start

    def kept(self, blocks: Blocks) -> Tensor:
        """The inverse of the input's inner products."""
        x = blocks.activations[0]
        return regularised_inverse(x if blocks.biases[0] is None else with_ones(x), self._weights.ridge)

    def sweep(self, blocks: Blocks, targets: Tensor, *, step: int, kept: Tensor | None = None) -> Blocks:
        """One iteration."""
        return admm_sweep(blocks, targets, self._weights, warm=step < self._warm_start, inverse=kept)

    def shares(self, blocks: Blocks, targets: Tensor) -> Tensor:
        """Every layer's terms of F."""
        return admm_shares(blocks, targets, self._weights)
