"""What a part of Greedy InfoMax minimises: predict the encoding of later positions from earlier ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ... import losses
from ...errors import MethodError
from ...objective import Context, Objective, Signal
from ...partition.boundary import Boundary

__all__ = ["PositionPrediction", "position_grid", "positions"]


def position_grid(boundary: Boundary, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of the encodings at a boundary; sequences have one column.

    Args:
        boundary: (N, C, T), (N, T, D), (N, C, H, W), (N, H, W, C) or, for P patches, (N, C, P, h, w).
        grid: (rows, columns) of the patches; square where left out.

    Raises:
        MethodError: a vector, more axes, or a number of patches that makes no such grid.

    >>> position_grid(Boundary("conv1", (2, 8, 49, 4, 4)), None)
    (7, 7)
    """
    where = f"boundary {boundary.name!r} of shape {boundary.shape}"
    sizes = boundary.spatial
    if len(sizes) == 1:
        return sizes[0], 1
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    if len(sizes) != 3:
        raise MethodError(
            f"{where} was given, Greedy InfoMax predicts between positions of a sequence, an image or patches; "
            "cut where positions are left (models.patches makes patches of images)"
        )
    rows, columns = grid or (math.isqrt(sizes[0]),) * 2
    if rows * columns != sizes[0]:
        raise MethodError(
            f"{where} was given, its {sizes[0]} patches make no grid of {rows} x {columns}; give grid=(rows, columns)"
        )
    return rows, columns


def positions(h: Tensor, boundary: Boundary, *, grid: tuple[int, int]) -> Tensor:
    """The encodings at a boundary as rows and columns; patches are averaged over their pixels.

    Args:
        h: the boundary (N, ...).
        boundary: its layout.
        grid: what `position_grid` returned; counts for patches alone.

    Returns:
        (N, rows, columns, C).

    >>> positions(torch.zeros(5, 8, 49, 4, 4), Boundary("conv1", (2, 8, 49, 4, 4)), grid=(7, 7)).shape
    torch.Size([5, 7, 7, 8])
    """
    z = boundary.channels_first(h)
    if z.dim() == 3:
        z = z.unsqueeze(3)
    elif z.dim() == 5:
        z = z.mean((3, 4)).unflatten(2, grid)
    return z.movedim(1, -1)


class PositionPrediction(Objective):
    """The mean over k of InfoNCE between W_k c_t and z_{t+k}, t the rows of a grid or the steps of a sequence.

    Args:
        boundary: where the objective sits.
        steps: number of predictions; those that no row is left for are not made.
        skip: rows left out between t and the first prediction; None for 1 on grids and 0 on sequences.
        negatives: drawn for every prediction, from all images and target positions of the batch.
        grid: (rows, columns) of patches, or None.
        context: units of a recurrent network that makes c_t from z_1 .. z_t on sequences; None for c_t = z_t.

    Raises:
        MethodError: the layout has no positions, or too few rows for one prediction.
    """

    def __init__(
        self,
        boundary: Boundary,
        *,
        steps: int,
        skip: int | None,
        negatives: int,
        grid: tuple[int, int] | None,
        context: int | None,
    ) -> None:
        super().__init__()
        self.boundary, self.negatives, self.grid = boundary, negatives, position_grid(boundary, grid)
        sequence = len(boundary.spatial) == 1
        self.skip = (0 if sequence else 1) if skip is None else skip
        self._enough(self.grid[0])
        channels = boundary.channels
        self.recurrent = nn.GRU(channels, context, batch_first=True) if context and sequence else None
        inputs = context if context and sequence else channels
        count = min(steps, self.grid[0] - 1 - self.skip)
        self.maps = nn.ModuleList(nn.Linear(inputs, channels, bias=False) for _ in range(count))
        if boundary.dtype.is_floating_point:
            self.to(boundary.dtype)

    def forward(self, context: Context) -> Signal:
        """The mean loss of the predictions that the batch has rows for."""
        z = positions(context.h_out, self.boundary, grid=self.grid)
        c = z if self.recurrent is None else self.recurrent(z.squeeze(2))[0].unsqueeze(2)
        rows = z.shape[1]
        self._enough(rows)
        terms = [
            self._term(predict(c[:, : rows - k]), z[:, k:])
            for k, predict in enumerate(self.maps, start=self.skip + 1)
            if k < rows
        ]
        return Signal(loss=torch.stack(terms).mean())

    def _term(self, predicted: Tensor, encoded: Tensor) -> Tensor:
        predicted, encoded = predicted.flatten(0, 2), encoded.flatten(0, 2)
        drawn = torch.randint(len(encoded), (len(encoded), self.negatives), device=encoded.device)
        return losses.info_nce(predicted, encoded, negatives=drawn)

    def _enough(self, rows: int) -> None:
        if rows < self.skip + 2:
            raise MethodError(
                f"{rows} rows or steps were given at boundary {self.boundary.name!r}, a prediction over "
                f"skip={self.skip} of them needs {self.skip + 2}; cut earlier, where more are left, or lower skip"
            )
