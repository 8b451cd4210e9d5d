"""The convolutional network of greedy layerwise learning: equal blocks, with downsampling that loses nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ..errors import ModulewiseError
from .builtin import Shape

__all__ = ["greedy_cnn"]


def greedy_cnn(
    shape: Shape,
    classes: int,
    *,
    width: int = 128,
    blocks: int = 4,
    down: Sequence[int] = (3,),
    normed: bool = True,
    invertible: bool = True,
) -> nn.Sequential:
    """Blocks rho(W P_j h): downsampling P_j where asked, convolution 3x3, batch norm, ReLU; linear head.

    Blocks are conv1, conv2, ...; P_j is a module of its own (down3 before conv3), so that a cut after conv2
    leaves it to the next part. P_j is space-to-depth of 2x2 pixels, (N, C, H, W) -> (N, 4 C, H/2, W/2), a
    bijection; channels double behind it. The head is linear after average pooling to 2x2. The published
    networks for CIFAR-10 are the default (with auxiliary heads of depth 2 and 3) and width=256, blocks=5,
    down=(3, 4), normed=False (heads of depth 1).

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        width: channels of the first block, >= 1.
        blocks: number of convolutions, >= 1.
        down: the blocks, from 1, that begin with downsampling; left out where a side is odd or below 2.
        normed: batch norm before every ReLU; without it convolutions have a bias.
        invertible: space-to-depth; False for max pooling 2x2.

    Raises:
        ModulewiseError: a number is out of range.

    References:
        Belilovsky, Eickenberg, Oyallon, Greedy Layerwise Learning Can Scale to ImageNet, ICML 2019,
        https://arxiv.org/abs/1812.11446

    >>> [name for name, _ in greedy_cnn((3, 32, 32), 10, width=4).named_children()]
    ['conv1', 'conv2', 'down3', 'conv3', 'conv4', 'pool', 'flatten', 'head']
    """
    if min(width, blocks) < 1 or not all(1 <= block <= blocks for block in down):
        raise ModulewiseError(
            f"width={width}, blocks={blocks}, down={tuple(down)} were given, expected width and blocks >= 1 and "
            f"down within 1 to {blocks}"
        )
    channels, height, side = shape
    chain = OrderedDict[str, nn.Module]()
    for block in range(1, blocks + 1):
        if block in down and height % 2 == 0 and side % 2 == 0:
            chain[f"down{block}"] = nn.PixelUnshuffle(2) if invertible else nn.MaxPool2d(2)
            channels, height, side = channels * (4 if invertible else 1), height // 2, side // 2
            width = width if block == 1 else 2 * width
        chain[f"conv{block}"] = _block(channels, width, normed=normed)
        channels = width
    sizes = (min(2, height), min(2, side))
    chain |= {"pool": _pool((height, side), sizes), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(chain, head=nn.Linear(channels * sizes[0] * sizes[1], classes)))


def _block(channels: int, out: int, *, normed: bool) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(channels, out, 3, padding=1, bias=not normed))
    if normed:
        layers["norm"] = nn.BatchNorm2d(out)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _pool(now: tuple[int, int], sizes: tuple[int, int]) -> nn.Module:
    """Average pooling; plain where sizes divide, since the adaptive backward is not deterministic on every device."""
    window = (now[0] // sizes[0], now[1] // sizes[1])
    divides = all(n == w * s for n, w, s in zip(now, window, sizes, strict=True))
    return nn.AvgPool2d(window) if divides else nn.AdaptiveAvgPool2d(sizes)
