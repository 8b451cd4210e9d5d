"""Networks that guess a gradient from an activation and, if they like, its label."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MethodError
from ...partition.boundary import Boundary

__all__ = ["GradientPredictor", "label_weights", "mapped_labels"]


def label_weights(y: Any, *, classes: int, spatial: tuple[int, ...]) -> Tensor:
    """Labels as weights over classes: (N, classes), or (N, *spatial, classes) where positions have their own.

    Labels per position of another grid than the activation's are averaged over positions; negative labels
    (the ignored ones) weigh nothing.

    Args:
        y: integer labels, (N,) or (N, *positions).
        classes: number of classes.
        spatial: sizes of the activation between batch and channels.

    Raises:
        MethodError: y is not a tensor of integers.

    >>> label_weights(torch.tensor([[1, 1], [0, -100]]), classes=2, spatial=(5,))
    tensor([[0.0000, 1.0000],
            [0.5000, 0.0000]])
    """
    if not isinstance(y, Tensor) or y.is_floating_point():
        given = f"{y.dtype} labels" if isinstance(y, Tensor) else f"labels of type {type(y).__name__}"
        raise MethodError(f"{given} were given to a label-conditioned gradient predictor; give integers (N, ...)")
    weights = F.one_hot(y.clamp(min=0), classes) * (y >= 0).unsqueeze(-1)
    weights = weights.to(torch.get_default_dtype())
    if y.dim() > 1 and tuple(y.shape[1:]) != spatial:
        return weights.flatten(1, -2).mean(1)
    return weights


def mapped_labels(layer: nn.Linear, y: Any, *, classes: int, like: Tensor) -> Tensor:
    """A linear map of one-hot labels, to add to features (N, *spatial, width).

    Args:
        layer: classes -> width.
        y: integer labels, (N,) or (N, *positions).
        classes: number of classes.
        like: the features, (N, *spatial, width).

    >>> mapped_labels(nn.Linear(2, 4), torch.tensor([0, 1, 1]), classes=2, like=torch.zeros(3, 5, 5, 4)).shape
    torch.Size([3, 1, 1, 4])
    """
    spatial = tuple(like.shape[1:-1])
    weights = label_weights(y, classes=classes, spatial=spatial)
    mapped: Tensor = layer(weights.to(like.device, layer.weight.dtype))
    return mapped.reshape(len(mapped), *[1] * len(spatial), mapped.shape[-1]) if mapped.dim() == 2 else mapped


class GradientPredictor(nn.Module):
    """Three layers, the last one zero at first: 5x5 convolutions for images, else a perceptron.

    Images: conv 5x5, batch norm, ReLU, conv 5x5, batch norm, ReLU, conv 5x5. Features and tokens: linear,
    ReLU, linear, ReLU, linear, without batch norm, so that a batch of one sample can be learned. Labels enter
    through a linear map of their one-hot code, added after the first layer.

    Args:
        boundary: the boundary whose gradient is guessed.
        classes: number of classes of the labels; None to guess without labels.
        width: channels of the two hidden layers.

    >>> predictor = GradientPredictor(Boundary("cut", (4, 3)), classes=None, width=8)
    >>> predictor(torch.ones(2, 3), None).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, boundary: Boundary, *, classes: int | None, width: int) -> None:
        super().__init__()
        self._boundary, self._classes = boundary, classes
        self._images = len(boundary.spatial) == 2
        self.first = self._layer(boundary.channels, width)
        second = self._layer(width, width)
        self.last = self._layer(width, boundary.channels)
        self.hidden = nn.Sequential(self._norm(width), nn.ReLU(), second, self._norm(width), nn.ReLU())
        self.labels = nn.Linear(classes, width, bias=False) if classes is not None else None
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(boundary.dtype)

    def _layer(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 5, padding=2) if self._images else nn.Linear(inputs, outputs)

    def _norm(self, width: int) -> nn.Module:
        return nn.BatchNorm2d(width) if self._images else nn.Identity()

    def forward(self, h: Tensor, y: Any) -> Tensor:
        """The guess, of the shape of h."""
        axis = 1 if self._images else -1
        a = self.first(h.movedim(self._boundary.channel_axis, axis))
        if self.labels is not None and self._classes is not None:
            a = a + mapped_labels(self.labels, y, classes=self._classes, like=a.movedim(axis, -1)).movedim(-1, axis)
        guess: Tensor = self.last(self.hidden(a)).movedim(axis, self._boundary.channel_axis)
        return guess.contiguous()
