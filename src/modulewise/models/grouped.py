"""Networks with divisive normalisation in groups, for learning with pHSIC (Pogodin and Latham)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..errors import ModulewiseError
from .builtin import Shape

__all__ = ["DivisiveNormalization", "phsic_cnn", "phsic_mlp"]


class DivisiveNormalization(nn.Module):
    """Activations less their group's mean, divided by a power of their group's variance: r_i = (z_i - mean_a) / u_a^p.

    u_a = (smoothing + sum_i (z_i - mean_a)^2) / n over the n elements of group a: consecutive channels at all their
    positions. No parameters, no running statistics, the same in training and evaluation.

    Args:
        groups: number of groups, >= 1; elements of a sample must be a multiple.
        power: p, in [0, 1]; published 0.2.
        smoothing: added to the sum of squares, > 0; published 1.

    Raises:
        ModulewiseError: a number is out of range, or (in the forward) the groups do not divide a sample.

    References:
        Pogodin, Latham, Kernelized information bottleneck leads to biologically plausible 3-factor Hebbian
        learning in deep networks, NeurIPS 2020, https://arxiv.org/abs/2006.07123

    >>> DivisiveNormalization(1, power=0.5, smoothing=6.0)(torch.tensor([[1.0, 3.0]])).tolist()  # 8 / 2 is the variance
    [[-0.5, 0.5]]
    """

    def __init__(self, groups: int, *, power: float = 0.2, smoothing: float = 1.0) -> None:
        super().__init__()
        if groups < 1 or not 0 <= power <= 1 or not smoothing > 0:
            raise ModulewiseError(
                f"groups={groups}, power={power} and smoothing={smoothing} were given, expected groups >= 1, a power "
                "in [0, 1] and a positive smoothing"
            )
        self.groups, self.power, self.smoothing = groups, power, smoothing

    def forward(self, z: Tensor) -> Tensor:
        """Z (N, C) or (N, C, *spatial), in the same shape."""
        if z.shape[1] % self.groups:
            raise ModulewiseError(
                f"{z.shape[1]} channels cannot be divided into groups={self.groups}; choose a divisor of the width"
            )
        grouped = z.to(torch.promote_types(z.dtype, torch.float32)).reshape(len(z), self.groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        variance = (centred.square().sum(2, keepdim=True) + self.smoothing) / grouped.shape[2]
        return (centred / variance**self.power).reshape(z.shape).to(z.dtype)

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return f"groups={self.groups}, power={self.power:g}, smoothing={self.smoothing:g}"


def _between(groups: int | None, width: int, dropout: float) -> OrderedDict[str, nn.Module]:
    """What stands between two layers; it begins a block, so that cuts between blocks lie before it."""
    if groups is not None and (groups < 1 or width % groups or width < 2 * groups):
        raise ModulewiseError(
            f"groups={groups} was given for a width of {width}, expected a divisor that leaves two units or more in a "
            "group; choose other groups, or None for no normalisation"
        )
    layers = OrderedDict[str, nn.Module]()
    if groups is not None:
        layers["norm"] = DivisiveNormalization(groups)
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return layers


def phsic_mlp(
    shape: Shape, classes: int, *, width: int = 1024, depth: int = 3, groups: int | None = 32, dropout: float = 0.01
) -> nn.Sequential:
    """A perceptron with blocks fc1, fc2, ... (divisive normalisation, Linear, LeakyReLU) and a linear head.

    Every block but the first begins with the normalisation of what it receives: a boundary between blocks
    carries activations as they are, which the local loss is computed on.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        width: units of a hidden block, a multiple of groups; published 1024.
        depth: number of hidden blocks, >= 0; published 3.
        groups: groups of the normalisation, or None for none of it; published 16 (cosine kernel) or 32 (Gaussian).
        dropout: probability of dropping a normalised unit, in [0, 1); published 0.01.

    Raises:
        ModulewiseError: the width is not a multiple of groups with two units or more in each.

    References:
        Pogodin, Latham, Kernelized information bottleneck leads to biologically plausible 3-factor Hebbian
        learning in deep networks, NeurIPS 2020, https://arxiv.org/abs/2006.07123

    >>> [name for name, _ in phsic_mlp((1, 8, 8), 10, width=64).named_children()]
    ['fc1', 'fc2', 'fc3', 'head']
    """
    features = shape[0] * shape[1] * shape[2]
    before = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    blocks = OrderedDict[str, nn.Module]()
    for i in range(1, depth + 1):
        linear = OrderedDict[str, nn.Module](linear=nn.Linear(features, width, bias=False), relu=nn.LeakyReLU(0.01))
        blocks[f"fc{i}"] = nn.Sequential(OrderedDict(before | linear))
        features, before = width, _between(groups, width, dropout)
    blocks["head"] = nn.Sequential(OrderedDict(before | {"linear": nn.Linear(features, classes)}))
    return nn.Sequential(blocks)


def phsic_cnn(
    shape: Shape, classes: int, *, width: int = 32, groups: int | None = 16, dropout: float = 0.05
) -> nn.Sequential:
    """A VGG-like network with blocks conv1 to conv6, fc1 and a linear head, divisive normalisation between them.

    Convolutions are 3x3, with SELU; channels are width, 2 width, 2 width, 4 width, 4 width, 4 width, and 8 width units
    follow. The second and the last three convolutions end with a 2x2 max pool, unless a side would vanish.
    Blocks begin with the normalisation of what they receive, as in :func:`phsic_mlp`.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        width: channels of the first convolution, a multiple of groups; 128 is the published network.
        groups: groups of the normalisation, or None for none of it.
        dropout: probability of dropping a normalised unit, in [0, 1); published 0.05.

    Raises:
        ModulewiseError: the width is not a multiple of groups with two channels or more in each.

    References:
        Pogodin, Latham, Kernelized information bottleneck leads to biologically plausible 3-factor Hebbian
        learning in deep networks, NeurIPS 2020, https://arxiv.org/abs/2006.07123

    >>> [name for name, _ in phsic_cnn((1, 8, 8), 10).named_children()][-3:]
    ['conv6', 'fc1', 'head']
    """
    channels, height, width_left = shape
    before = OrderedDict[str, nn.Module]()
    blocks = OrderedDict[str, nn.Module]()
    plan = zip((1, 2, 2, 4, 4, 4), (False, True, False, True, True, True), strict=True)
    for i, (factor, pools) in enumerate(plan, start=1):
        out = factor * width
        layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(channels, out, 3, padding=1, bias=False), selu=nn.SELU())
        if pools and min(height, width_left) >= 2:
            layers["pool"] = nn.MaxPool2d(2)
            height, width_left = height // 2, width_left // 2
        blocks[f"conv{i}"] = nn.Sequential(OrderedDict(before | layers))
        channels, before = out, _between(groups, out, dropout)
    units = 8 * width
    linear = {
        "flatten": nn.Flatten(),
        "linear": nn.Linear(channels * height * width_left, units, bias=False),
        "selu": nn.SELU(),
    }
    blocks["fc1"] = nn.Sequential(OrderedDict(before | linear))
    before = _between(groups, units, dropout)
    blocks["head"] = nn.Sequential(OrderedDict(before | {"linear": nn.Linear(units, classes)}))
    return nn.Sequential(blocks)
