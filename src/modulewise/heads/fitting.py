"""Adapters between tensors of different size and layout: pool first, then map channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..partition.boundary import Boundary
from .layers import ChannelsFirst, ChannelsLast, map_layer, norm_layer, pooled, sizes_within

__all__ = ["Fit", "adapter"]


class Fit(nn.Module):
    """Resize (N, C, *spatial) to (N, C, *sizes), also between different numbers of axes.

    Averages where an axis is too long, repeats where it is too short. Between different numbers of axes,
    positions are put in a row first.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, h: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, *sizes)."""
        if h.dim() - 2 == len(self.sizes):
            return _resize(h, self.sizes)
        row = h.flatten(2) if h.dim() > 2 else h.unsqueeze(2)
        if not self.sizes:
            return row.mean(2)
        row = _resize(row, (torch.Size(self.sizes).numel(),))
        return row.reshape(*row.shape[:2], *self.sizes)


def _resize(h: Tensor, sizes: tuple[int, ...]) -> Tensor:
    if not sizes:
        return h
    h = pooled(h, sizes_within(h.shape[2:], sizes))
    return h if tuple(h.shape[2:]) == sizes else F.interpolate(h, size=sizes, mode="nearest")


def adapter(here: Boundary, needed: Boundary) -> list[nn.Module]:
    """The modules from one boundary's shape to another's; none where they agree.

    Args:
        here: what there is.
        needed: what is needed.

    >>> adapter(Boundary("a", (2, 16, 8, 8)), Boundary("b", (2, 32, 4, 4)))[:2]
    [Fit(), Conv2d(16, 32, kernel_size=(1, 1), stride=(1, 1), bias=False)]
    """
    spatial, last = needed.spatial, needed.channel_axis == -1 or not needed.spatial
    layers: list[nn.Module] = []
    now_last = here.channel_axis == -1 or not here.spatial
    if here.spatial != spatial:
        layers += [ChannelsFirst()] if now_last and here.spatial else []
        layers.append(Fit(spatial))
        now_last = not spatial
    if now_last != last:
        layers.append(ChannelsLast() if last else ChannelsFirst())
    if here.channels != needed.channels:
        axes = 0 if last else len(spatial)  # channels last: a linear map and LayerNorm on the last axis
        layers += [
            map_layer(axes, here.channels, needed.channels, bias=False),
            norm_layer(axes, needed.channels, spatial),
        ]
    return layers
