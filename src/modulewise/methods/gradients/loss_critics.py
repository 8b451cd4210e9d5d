"""Networks that guess the loss of a sample from an activation and, if they like, its label."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...partition.boundary import Boundary
from .gradient_predictors import mapped_labels

__all__ = ["LossCritic"]


class LossCritic(nn.Module):
    """Two layers with ReLU, a mean over positions and a linear read-out, zero at first.

    Images: 5x5 convolutions; features and tokens: linear maps at every position. Labels enter through a linear map of
    their one-hot code, added after the first layer.

    Args:
        boundary: the boundary from which the loss is guessed.
        classes: number of classes of the labels; None to guess without labels.
        width: channels of the two hidden layers, >= 1.

    >>> import torch
    >>> LossCritic(Boundary("cut", (4, 3)), classes=None, width=8)(torch.ones(2, 3), None).tolist()
    [0.0, 0.0]
    """

    def __init__(self, boundary: Boundary, *, classes: int | None, width: int) -> None:
        super().__init__()
        self._boundary, self._classes = boundary, classes
        self._images = len(boundary.spatial) == 2
        self.first, self.second = self._layer(boundary.channels, width), self._layer(width, width)
        self.labels = nn.Linear(classes, width, bias=False) if classes is not None else None
        self.last = nn.Linear(width, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(boundary.dtype)

    def _layer(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 5, padding=2) if self._images else nn.Linear(inputs, outputs)

    def forward(self, h: Tensor, y: Any) -> Tensor:
        """The guessed loss of every sample, (N,)."""
        axis = 1 if self._images else -1
        a = self.first(h.movedim(self._boundary.channel_axis, axis))
        if self.labels is not None and self._classes is not None:
            a = a + mapped_labels(self.labels, y, classes=self._classes, like=a.movedim(axis, -1)).movedim(-1, axis)
        hidden: Tensor = self.second(a.relu()).relu().movedim(axis, -1)
        read: Tensor = self.last(hidden.flatten(1, -2).mean(1) if hidden.dim() > 2 else hidden)
        return read.squeeze(1)
