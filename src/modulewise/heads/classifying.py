"""Heads that classify: linear, multilayer perceptron, MLP-SR, convolutional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from ..partition.boundary import Boundary
from .layers import (
    Pool,
    at_least_one,
    end,
    finished,
    flat,
    grid_axes,
    map_layer,
    sizes_within,
    unit,
    working_layout,
)

__all__ = ["HeadFactory", "conv", "linear", "mlp", "mlp_sr"]


class HeadFactory(Protocol):
    """factory(boundary, outputs, dense=...) -> head; draws initial weights from torch's default generator."""

    def __call__(self, boundary: Boundary, outputs: int, /, *, dense: bool = False) -> nn.Module:
        """Make a head for this boundary."""


def linear(boundary: Boundary, outputs: int, *, dense: bool = False, pool: int | Sequence[int] = 2) -> nn.Module:
    """A linear classifier on the pooled boundary, W avgpool(h) + b.

    Args:
        boundary: where the head sits: (N, C), (N, T, D), (N, C, L), (N, C, H, W) or (N, H, W, C).
        outputs: logits per sample or position, >= 1.
        dense: one linear map per position instead: (N, T, outputs), or (N, outputs, H, W) for images.
        pool: size that each spatial axis is averaged to (for all axes or one by one); a smaller axis stays,
            tokens are averaged to one.

    Returns:
        h -> (N, outputs).

    Raises:
        MethodError: a dense head was asked of a boundary without positions.

    >>> import torch
    >>> linear(Boundary("layer1", (2, 16, 8, 8)), 10)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    """
    at_least_one(outputs=outputs)
    layers = end(boundary, boundary.channels, outputs, pool=pool, dense=dense)
    return finished(boundary, [*working_layout(boundary), *layers])


def mlp(
    boundary: Boundary,
    outputs: int,
    *,
    dense: bool = False,
    depth: int = 2,
    width: int | None = None,
    pool: int = 2,
) -> nn.Module:
    """A multilayer perceptron on the pooled boundary: `depth` hidden layers (linear, ReLU), then linear.

    Args:
        boundary: where the head sits.
        outputs: logits per sample or position, >= 1.
        dense: the same perceptron at every position instead.
        depth: number of hidden layers, >= 1.
        width: units of a hidden layer, >= 1; the boundary's channels where left out.
        pool: as for `linear`.

    Returns:
        h -> (N, outputs), or one row per position.

    Raises:
        MethodError: a size is below 1, or a dense head was asked of a boundary without positions.

    >>> import torch
    >>> mlp(Boundary("encoder", (2, 7, 16), channel_axis=-1), 10)(torch.zeros(5, 7, 16)).shape
    torch.Size([5, 10])
    """
    at_least_one(outputs=outputs, depth=depth, width=width, pool=pool)
    width = width or boundary.channels
    if dense:
        return _dense_mlp(boundary, outputs, depth=depth, width=width)
    layers, features = flat(boundary, boundary.channels, sizes_within(boundary.spatial, pool))
    return finished(boundary, [*working_layout(boundary), *layers, *_perceptron(features, outputs, depth, width)])


def _perceptron(features: int, outputs: int, depth: int, width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return [*layers, nn.Linear(features, outputs)]


def _dense_mlp(boundary: Boundary, outputs: int, *, depth: int, width: int) -> nn.Module:
    axes, channels = grid_axes(boundary), boundary.channels
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [map_layer(axes, channels, width), nn.ReLU()]
        channels = width
    return finished(
        boundary, [*working_layout(boundary), *layers, *end(boundary, channels, outputs, pool=1, dense=True)]
    )


def mlp_sr(boundary: Boundary, outputs: int, *, dense: bool = False) -> nn.Module:
    """MLP-SR, a cheap head with spatial reduction: about 5 % of the cost of the part below it.

    Pool to (H/4, W/4), three 1x1 convolutions with norm and ReLU, pool to 2x2, perceptron of three layers
    with 4 C units. Tokens are not pooled before their mean, and vectors not at all.

    Args:
        boundary: where the head sits.
        outputs: logits per sample or position, >= 1.
        dense: end with a 1x1 convolution instead of the perceptron; on images the logits have the reduced
            size, (N, outputs, H/4, W/4), which `losses.classification` resizes.

    Returns:
        h -> (N, outputs), or one row per position.

    Raises:
        MethodError: a dense head was asked of a boundary without positions.

    References:
        Belilovsky, Eickenberg and Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020,
        https://arxiv.org/abs/1901.08164

    Departs from the paper: sizes never fall below 2 by the first pooling, so that small maps keep a layout;
    LayerNorm in place of BatchNorm where there is no grid.

    >>> import torch
    >>> mlp_sr(Boundary("layer1", (2, 16, 32, 32)), 10)(torch.zeros(5, 16, 32, 32)).shape
    torch.Size([5, 10])
    """
    at_least_one(outputs=outputs)
    axes, channels = grid_axes(boundary), boundary.channels
    layers = working_layout(boundary)
    sizes = boundary.spatial
    if axes and not (dense and axes == 1):
        sizes = sizes_within(sizes, [max(2, s // 4) for s in sizes])
        layers.append(Pool(sizes))
    for _ in range(3):
        layers += unit(axes, channels, channels, sizes=sizes)
    if dense:
        return finished(boundary, [*layers, *end(boundary, channels, outputs, pool=1, dense=True)])
    before, features = flat(boundary, channels, sizes_within(sizes, 2))
    return finished(boundary, [*layers, *before, *_perceptron(features, outputs, 2, 4 * channels)])


def conv(
    boundary: Boundary,
    outputs: int,
    *,
    dense: bool = False,
    depth: int = 2,
    width: int | None = None,
    pool: int = 2,
) -> nn.Module:
    """The head of depth k of greedy layerwise learning: k - 1 3x3 convolutions, pool to 2x2, linear.

    Args:
        boundary: where the head sits.
        outputs: logits per sample or position, >= 1.
        dense: one linear map per position at the end, without pooling.
        depth: k >= 1; k = 1 is `linear`.
        width: channels of the convolutions, >= 1; the boundary's where left out.
        pool: as for `linear`.

    Returns:
        h -> (N, outputs), or one row per position.

    Raises:
        MethodError: a size is below 1, or a dense head was asked of a boundary without positions.

    References:
        Belilovsky, Eickenberg and Oyallon, Greedy Layerwise Learning Can Scale to ImageNet, ICML 2019,
        https://arxiv.org/abs/1812.11446

    Departs from the paper: tokens and vectors have no neighbours to convolve over (a language model's next
    token is its label), they get linear maps with LayerNorm.

    >>> import torch
    >>> conv(Boundary("layer1", (2, 8, 8, 16), channel_axis=-1), 10, depth=3)(torch.zeros(5, 8, 8, 16)).shape
    torch.Size([5, 10])
    """
    at_least_one(outputs=outputs, depth=depth, width=width, pool=pool)
    axes, channels = grid_axes(boundary), boundary.channels
    layers = working_layout(boundary)
    for _ in range(depth - 1):
        layers += unit(axes, channels, width or boundary.channels, sizes=boundary.spatial, kernel=3)
        channels = width or boundary.channels
    return finished(boundary, [*layers, *end(boundary, channels, outputs, pool=pool, dense=dense)])
