"""What heads are made of: the working layout of a boundary, pooling, one map with its norm, the last layer.

A boundary is a *grid* (worked on channels first, one spatial axis or more: maps are convolutions), a row of
*tokens* (N, T, D) or a *vector* (N, C) (maps are linear). Tokens are never convolved over: a neighbour in a
sequence may be the label of a language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MethodError
from ..partition.boundary import Boundary

__all__ = [
    "ChannelsFirst",
    "ChannelsLast",
    "Pool",
    "TokenMean",
    "at_least_one",
    "channel_map",
    "end",
    "finished",
    "flat",
    "grid_axes",
    "halved_until",
    "map_layer",
    "norm_layer",
    "pooled",
    "sizes_within",
    "unit",
    "working_layout",
]

_Layers = dict[int, Callable[..., nn.Module]]
_CONV: _Layers = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM: _Layers = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_Functions = dict[int, Callable[..., Tensor]]
_AVERAGE: _Functions = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE: _Functions = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def grid_axes(boundary: Boundary) -> int:
    """Number of axes to convolve over: 0 for vectors and tokens.

    Raises:
        MethodError: more than three spatial axes.

    >>> grid_axes(Boundary("b", (2, 3, 8, 8))), grid_axes(Boundary("b", (2, 9, 3), channel_axis=-1))
    (2, 0)
    """
    axes = len(boundary.spatial)
    if axes > max(_CONV):
        raise MethodError(
            f"boundary {boundary.name!r} of shape {boundary.shape} was given, heads know up to 3 spatial "
            "axes; cut elsewhere"
        )
    return 0 if axes == 1 and boundary.channel_axis == -1 else axes


def at_least_one(**numbers: int | None) -> None:
    """Refuse counts below one.

    Raises:
        MethodError: one of the numbers is below 1.
    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise MethodError(f"{name}={number} was given, a head needs at least 1; choose a larger number")


def sizes_within(spatial: Sequence[int], pool: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes to pool to: `pool` per axis, or the axis itself where that is smaller.

    >>> sizes_within((8, 1), 2)
    (2, 1)
    """
    wanted = (pool,) * len(spatial) if isinstance(pool, int) else tuple(pool)
    return tuple(min(p, s) for p, s in zip(wanted, spatial, strict=True))


def halved_until(boundary: Boundary, features: int) -> tuple[int, ...]:
    """Sizes to pool to so that C * sizes <= features: the longest axis is halved until they fit, or all are 1.

    >>> halved_until(Boundary("conv1", (2, 128, 32, 32)), 2048)
    (4, 4)
    """
    sizes = list(boundary.spatial)
    while boundary.channels * torch.Size(sizes).numel() > features and max(sizes, default=1) > 1:
        longest = sizes.index(max(sizes))
        sizes[longest] = sizes[longest] // 2
    return tuple(sizes)


def pooled(h: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Average pooling of h (N, C, *spatial) to (N, C, *sizes).

    Plain pooling where sizes divide (its backward is deterministic on every device), adaptive pooling
    elsewhere.
    """
    spatial = h.shape[2:]
    if tuple(spatial) == sizes:
        return h
    if all(s % p == 0 for s, p in zip(spatial, sizes, strict=True)):
        window = [s // p for s, p in zip(spatial, sizes, strict=True)]
        return _AVERAGE[len(sizes)](h, window, window)
    return _ADAPTIVE[len(sizes)](h, sizes)


class Pool(nn.Module):
    """Average pooling of (N, C, *spatial) to fixed sizes."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, *sizes)."""
        return pooled(h, self.sizes)


class ChannelsFirst(nn.Module):
    """Channels to axis 1."""

    def forward(self, h: Tensor) -> Tensor:
        """(N, *spatial, C) -> (N, C, *spatial)."""
        return h.movedim(-1, 1)


class ChannelsLast(nn.Module):
    """Channels to the last axis."""

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, *spatial, C)."""
        return h.movedim(1, -1)


class TokenMean(nn.Module):
    """Mean over tokens."""

    def forward(self, h: Tensor) -> Tensor:
        """(N, T, D) -> (N, D)."""
        return h.mean(1)


def working_layout(boundary: Boundary) -> list[nn.Module]:
    """The modules that bring a boundary to the layout heads work in: grids channels first, others as they are."""
    return [ChannelsFirst()] if grid_axes(boundary) and boundary.channel_axis == -1 else []


def map_layer(axes: int, inputs: int, outputs: int, *, kernel: int = 1, bias: bool = True) -> nn.Module:
    """A linear map of channels: nn.Linear for 0 grid axes, else a convolution that keeps the sizes."""
    if axes == 0:
        return nn.Linear(inputs, outputs, bias=bias)
    return _CONV[axes](inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def norm_layer(axes: int, channels: int, sizes: Sequence[int]) -> nn.Module:
    """BatchNorm on grids; LayerNorm for tokens and vectors, where a batch of one sample has no spread.

    A grid of one position is normalised like a vector, for the same reason.
    """
    if axes == 0:
        return nn.LayerNorm(channels)
    return _NORM[axes](channels) if torch.Size(sizes).numel() > 1 else nn.GroupNorm(1, channels)


def unit(axes: int, inputs: int, outputs: int, *, sizes: Sequence[int], kernel: int = 1) -> list[nn.Module]:
    """Map, norm, ReLU; no bias in the map, because the norm takes it away."""
    return [
        map_layer(axes, inputs, outputs, kernel=kernel, bias=False),
        norm_layer(axes, outputs, sizes),
        nn.ReLU(),
    ]


def flat(boundary: Boundary, channels: int, sizes: tuple[int, ...]) -> tuple[list[nn.Module], int]:
    """The modules from the working layout to (N, F), pooling grids to `sizes` and averaging tokens, and F."""
    if grid_axes(boundary):
        return [Pool(sizes), nn.Flatten(1)], channels * torch.Size(sizes).numel()
    return [TokenMean()] if boundary.spatial else [], channels


def end(boundary: Boundary, channels: int, outputs: int, *, pool: int | Sequence[int], dense: bool) -> list[nn.Module]:
    """The last layers of a head, from the working layout to logits.

    Args:
        boundary: where the head sits; its layout counts here, its sizes only to bound `pool`.
        channels: channels that arrive.
        outputs: logits per sample or position.
        pool: size per spatial axis to pool to.
        dense: logits per position.

    Raises:
        MethodError: dense logits were asked of a boundary without positions.
    """
    axes = grid_axes(boundary)
    if not dense:
        before, features = flat(boundary, channels, sizes_within(boundary.spatial, pool))
        return [*before, nn.Linear(features, outputs)]
    if not boundary.spatial:
        raise MethodError(
            f"a dense head was asked for at boundary {boundary.name!r} of shape {boundary.shape}, which has "
            "no positions; use dense=False or cut earlier"
        )
    last = [map_layer(axes, channels, outputs)]
    return [*last, ChannelsLast()] if axes == 1 else last


def channel_map(boundary: Boundary, outputs: int, *, kernel: int = 1) -> nn.Module:
    """A trained map of channels without bias: a convolution on grids, linear on tokens and vectors.

    Args:
        boundary: where it sits.
        outputs: channels to give.
        kernel: size of the convolution, odd.

    Returns:
        h -> (N, outputs, *spatial), channels first whatever the boundary's layout.

    >>> channel_map(Boundary("encoder", (2, 7, 16), channel_axis=-1), 8)(torch.zeros(5, 7, 16)).shape
    torch.Size([5, 8, 7])
    """
    axes = grid_axes(boundary)
    layers = [*working_layout(boundary), map_layer(axes, boundary.channels, outputs, kernel=kernel, bias=False)]
    return finished(boundary, [*layers, ChannelsFirst()] if boundary.spatial and not axes else layers)


def finished(boundary: Boundary, layers: Sequence[nn.Module]) -> nn.Sequential:
    """The head as one module, in the boundary's element type."""
    head = nn.Sequential(*layers)
    return head.to(boundary.dtype) if boundary.dtype.is_floating_point else head
