"""A head that condenses a boundary to a small vector, to be contrasted or to be read as logits (InfoPro)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..partition.boundary import Boundary
from .layers import at_least_one, finished, flat, grid_axes, norm_layer, unit, working_layout

__all__ = ["condensing"]

_CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_SMALL = 8


def condensing(boundary: Boundary, outputs: int, *, width: int = 128) -> nn.Module:
    """InfoPro's head "1c2f": 3x3 convolution, norm, ReLU, mean over positions, linear, ReLU, linear.

    The convolution does what the next stage of a residual network would: 2 C channels at stride 2 on maps larger than
    8 positions an axis, C channels at stride 1 on smaller ones.

    Args:
        boundary: where the head sits.
        outputs: elements of the vector, or number of classes, >= 1.
        width: units of the hidden linear layer, >= 1, default 128.

    Returns:
        h -> (N, outputs), not normalised.

    Raises:
        MethodError: a size is below 1.

    References:
        Wang et al., Revisiting Locally Supervised Learning: an Alternative to End-to-end Training, ICLR 2021,
        https://arxiv.org/abs/2101.10832

    Departs from the paper: tokens and vectors have no grid to convolve over, they get a linear map with LayerNorm; the
    rule for channels and stride is typed by hand there for maps of 16, 32 and 64 channels, with which it agrees.

    >>> import torch
    >>> condensing(Boundary("layer1", (2, 16, 32, 32)), 128)(torch.zeros(5, 16, 32, 32)).shape
    torch.Size([5, 128])
    """
    at_least_one(outputs=outputs, width=width)
    axes, channels = grid_axes(boundary), boundary.channels
    layers = working_layout(boundary)
    if axes and max(boundary.spatial) > _SMALL:
        halved = tuple((size + 1) // 2 for size in boundary.spatial)
        layers += [
            _CONV[axes](channels, 2 * channels, 3, stride=2, padding=1, bias=False),
            norm_layer(axes, 2 * channels, halved),
            nn.ReLU(),
        ]
        channels = 2 * channels
    else:
        layers += unit(axes, channels, channels, sizes=boundary.spatial, kernel=3)
    before, features = flat(boundary, channels, (1,) * axes)
    return finished(
        boundary,
        [*layers, *before, nn.Linear(features, width), nn.ReLU(), nn.Linear(width, outputs)],
    )
