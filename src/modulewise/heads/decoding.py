"""A head that reconstructs a tensor, such as the model's input, from a boundary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import MethodError
from ..partition.boundary import Boundary
from .layers import (
    at_least_one,
    finished,
    flat,
    grid_axes,
    map_layer,
    norm_layer,
    sizes_within,
    working_layout,
)
from .resizing import ResizedConvolution

__all__ = ["decoder"]


def decoder(boundary: Boundary, shape: Sequence[int], *, width: int = 12) -> nn.Module:
    """The decoder of InfoPro: resize to the target's size, 3x3 convolution, BatchNorm, ReLU, 3x3 convolution.

    Args:
        boundary: where the head sits.
        shape: the shape of one sample of the target, (C, H, W) for images; channels first.
        width: channels of the hidden layer, >= 1.

    Returns:
        h -> (N, *shape), unbounded: apply a sigmoid where the target lies in [0, 1].

    Raises:
        MethodError: the target has no elements, or a width below 1 was given.

    References:
        Wang et al., Revisiting Locally Supervised Learning: an Alternative to End-to-end Training, ICLR 2021,
        https://arxiv.org/abs/2101.10832

    Departs from the paper: where boundary and target are not grids of the same number of axes, there is
    nothing to resize; one linear map of the features (tokens averaged, grids averaged to 2x2) gives all
    elements.

    >>> decoder(Boundary("layer1", (2, 16, 8, 8)), (3, 32, 32))(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 3, 32, 32])
    """
    size = tuple(shape)
    if not size or min(size) < 1:
        raise MethodError(f"a target of shape {size} was given, a decoder needs (C, *spatial); give one sample's shape")
    at_least_one(width=width)
    axes = grid_axes(boundary)
    if axes and axes == len(size) - 1:
        return finished(
            boundary,
            [
                *working_layout(boundary),
                ResizedConvolution(boundary.spatial, size[1:], channels=boundary.channels, outputs=width, kernel=3),
                norm_layer(axes, width, size[1:]),
                nn.ReLU(),
                map_layer(axes, width, size[0], kernel=3),
            ],
        )
    before, features = flat(boundary, boundary.channels, sizes_within(boundary.spatial, 2) if axes else ())
    elements = torch.Size(size).numel()
    return finished(
        boundary,
        [*working_layout(boundary), *before, nn.Linear(features, elements), nn.Unflatten(1, size)],
    )
