"""Networks that guess what enters a part from the model's input alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MethodError
from ...partition.boundary import Boundary

__all__ = ["InputPredictor"]


class InputPredictor(nn.Module):
    """Three layers from x to a boundary: 5x5 convolutions between images, else a perceptron on all elements.

    Images: resize x to the boundary's height and width (nearest), conv 5x5, ReLU, conv 5x5, ReLU, conv 5x5. Anything
    else: flatten, linear, ReLU, linear, ReLU, linear.

    Args:
        x: an example of the model's input, (N, ...), floating point; images are (N, C, H, W).
        boundary: what enters the part.
        width: channels of the two hidden layers, >= 1.

    Raises:
        MethodError: x is not one tensor of floating point.

    >>> import torch
    >>> predictor = InputPredictor(torch.zeros(2, 1, 4, 4), Boundary("cut", (2, 6)), width=8)
    >>> predictor(torch.zeros(5, 1, 4, 4)).shape
    torch.Size([5, 6])
    """

    def __init__(self, x: Any, boundary: Boundary, *, width: int) -> None:
        super().__init__()
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise MethodError(
                f"the model's input is {given}, the default input predictor takes a tensor of floating point; "
                "give input_predictor="
            )
        self._boundary = boundary
        self._images = x.dim() == 4 and len(boundary.spatial) == 2
        if self._images:
            sizes = (x.shape[1], width, width, boundary.channels)
            maps: list[nn.Module] = [nn.Conv2d(a, b, 5, padding=2) for a, b in pairwise(sizes)]
        else:
            sizes = (x[0].numel(), width, width, boundary.features)
            maps = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(maps[0], nn.ReLU(), maps[1], nn.ReLU(), maps[2]).to(boundary.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The guess (N, ...) of what enters the part."""
        x = x.to(self._boundary.dtype)
        if not self._images:
            guess: Tensor = self.layers(x.flatten(1))
            return guess.reshape(len(x), *self._boundary.shape[1:])
        if tuple(x.shape[2:]) != self._boundary.spatial:
            x = F.interpolate(x, size=self._boundary.spatial, mode="nearest")
        guess = self.layers(x)
        return guess.movedim(1, self._boundary.channel_axis)
