"""A built-in image classifier that encodes overlapping patches of the image independently of one another."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..errors import ModulewiseError
from .builtin import Shape

__all__ = ["Patches", "patches"]


class Patches(nn.Module):
    """Cuts images into overlapping patches; pixels at the right and lower edge that fill no patch are left out.

    Args:
        size: side p of a patch, in pixels, >= 1.
        stride: distance between patches, in pixels, >= 1.

    >>> import torch
    >>> Patches(16, stride=8)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 3, 49, 16, 16])
    """

    def __init__(self, size: int, *, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, P, p, p), patches row by row."""
        grid = x.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)
        return grid.flatten(2, 3)


class _Mean(nn.Module):
    """(N, C, P, h, w) -> (N, C)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean((2, 3, 4))


def _block(channels: int, out: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution inside every patch, with norm and ReLU."""
    conv = nn.Conv3d(channels, out, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm3d(out), relu=nn.ReLU()))


def patches(
    shape: Shape,
    classes: int,
    *,
    patch: int | None = None,
    stride: int | None = None,
    width: int = 32,
) -> nn.Sequential:
    """A network on overlapping patches, for Greedy InfoMax: patches, conv1 .. conv4, mean, linear head.

    Every patch is encoded by itself, so that a boundary (N, C, P, h, w) holds one embedding a patch: its mean over
    (h, w). Convolutions are 3x3 with batch norm and ReLU; channels are width, 2 width, 4 width, 4 width, and conv2
    and conv3 halve h and w. Their weights are those of Conv3d layers with kernel (1, 3, 3).

    Args:
        shape: (C, H, W) of one image, any size; P is a square number where H = W.
        classes: number of classes.
        patch: side of a patch in pixels, from 1 to the image's shorter side; where left out a quarter of that side,
            as the paper's 16 of 64, and at least 4 pixels of it.
        stride: distance between patches in pixels, >= 1; half a patch (published) where left out.
        width: channels of the first block, >= 1.

    Raises:
        ModulewiseError: a patch is larger than the image, or a size is below 1.

    References:
        Löwe, O'Connor and Veeling, Putting An End to End-to-End: Gradient-Isolated Learning of Representations,
        NeurIPS 2019 (section 4.1), https://arxiv.org/abs/1905.11786

    >>> [name for name, _ in patches((1, 8, 8), 10).named_children()]
    ['patches', 'conv1', 'conv2', 'conv3', 'conv4', 'mean', 'head']
    """
    side = min(shape[1:])
    patch = max(side // 4, min(4, side)) if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if not 1 <= patch <= side or min(stride, width) < 1:
        raise ModulewiseError(
            f"patch={patch}, stride={stride} and width={width} were given for images of shape {tuple(shape)}, "
            f"expected a patch of 1 to {side} pixels, and stride and width of at least 1"
        )
    blocks = OrderedDict[str, nn.Module](patches=Patches(patch, stride=stride))
    channels = shape[0]
    for i, (times, step) in enumerate(((1, 1), (2, 2), (4, 2), (4, 1)), start=1):
        blocks[f"conv{i}"] = _block(channels, times * width, step)
        channels = times * width
    blocks |= {"mean": _Mean(), "head": nn.Linear(channels, classes)}
    return nn.Sequential(blocks)
