"""Networks that map what left a part back to what entered it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...partition.boundary import Boundary

__all__ = ["Inverse"]


class Inverse(nn.Module):
    """A perceptron with one tanh layer; for images two 3x3 convolutions with a tanh between, after resizing.

    Images (N, C, H, W) or (N, H, W, C): resize to the input's height and width (nearest), conv 3x3, tanh,
    conv 3x3. Positions that match one to one (tokens): linear, tanh, linear for every position. Anything
    else: the same on all elements of a sample.

    Args:
        input: what entered the part; the shape to give.
        output: what left the part; the shape that is given.
        width: channels of the hidden layer; None for as many as enter the part.

    >>> import torch
    >>> inverse = Inverse(Boundary("in", (2, 3, 8, 8)), Boundary("out", (2, 6, 4, 4)))
    >>> inverse(torch.ones(5, 6, 4, 4)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(self, input: Boundary, output: Boundary, *, width: int | None = None) -> None:
        super().__init__()
        self._input, self._output = input, output
        self._images = len(input.spatial) == len(output.spatial) == 2
        self._positions = not self._images and input.spatial == output.spatial
        local = self._images or self._positions
        below, above = (input.channels, output.channels) if local else (input.features, output.features)
        hidden = width or below
        if self._images:
            first: nn.Module = nn.Conv2d(above, hidden, 3, padding=1)
            second: nn.Module = nn.Conv2d(hidden, below, 3, padding=1)
        else:
            first, second = nn.Linear(above, hidden), nn.Linear(hidden, below)
        self.layers = nn.Sequential(first, nn.Tanh(), second).to(input.dtype)

    def forward(self, h: Tensor) -> Tensor:
        """What may have entered the part, (N, ...) like its input."""
        if self._images:
            h = self._output.channels_first(h)
            if self._input.spatial != self._output.spatial:
                h = F.interpolate(h, size=self._input.spatial, mode="nearest")
            back: Tensor = self.layers(h)
            return back.movedim(1, self._input.channel_axis)
        if self._positions:
            back = self.layers(h.movedim(self._output.channel_axis, -1))
            return back.movedim(-1, self._input.channel_axis)
        back = self.layers(h.flatten(1))
        return back.reshape(len(h), *self._input.shape[1:])
