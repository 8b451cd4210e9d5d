"""What HSIC objectives compare samples by: kernels on representations and on labels, and groups of channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import MethodError
from .kernels import gaussian
from .rows import same_class, widened

__all__ = ["group_deviations", "one_hot_gaussian", "scaled_gaussian"]


def scaled_gaussian(h: Tensor, *, sigma: float) -> Tensor:
    """Gram matrix of exp(-||u - v||^2 / (2 sigma^2 d)), d the number of elements of one sample.

    Args:
        h: (N, ...), floating point.
        sigma: width per dimension, in units of one element, > 0.

    Returns:
        (N, N), in float32 or wider.

    References:
        Ma, Lewis, Kleijn, The HSIC Bottleneck: Deep Learning without Back-Propagation, AAAI 2020,
        https://arxiv.org/abs/1908.01580

    >>> round(scaled_gaussian(torch.tensor([[0.0, 0.0], [2.0, 2.0]]), sigma=1.0)[0, 1].item(), 4)  # exp(-8 / 4)
    0.1353
    """
    u = h.flatten(1)
    return gaussian(sigma * u.shape[1] ** 0.5).gram(u)


def one_hot_gaussian(y: Tensor, *, classes: int, sigma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """`scaled_gaussian` of one-hot labels in closed form: 1 in a class, exp(-1 / (sigma^2 classes)) across classes.

    Args:
        y: class indices (N,).
        classes: number of classes, >= 2.
        sigma: width per dimension, > 0.
        dtype: element type of the result.

    Returns:
        (N, N).

    Raises:
        MethodError: y is not one integer class per sample.

    >>> one_hot_gaussian(torch.tensor([0, 1]), classes=2, sigma=1.0)[0].tolist()
    [1.0, 0.6065306663513184]
    """
    same = same_class(y).to(dtype)
    return same + math.exp(-1 / (sigma**2 * classes)) * (1 - same)


def group_deviations(z: Tensor, *, groups: int, power: float = 0.5, smoothing: float = 1.0) -> Tensor:
    """What is left of a layer when neighbouring channels are pooled: u_a^power less its mean over the groups a.

    u_a = (smoothing + sum_i (z_i - mean_a)^2) / n over the n elements i of group a: consecutive channels at all their
    positions. With power 1 - p the derivative of u_a^power by z_i is 2 (1 - p) / n times the output of divisive
    normalisation of power p, which makes the update Hebbian.

    Args:
        z: (N, C) or channels first, (N, C, *spatial).
        groups: number of groups, >= 2, a divisor of C that leaves two elements or more in each.
        power: exponent of the variance, > 0; published 0.5, or 0.8 behind divisive normalisation of power 0.2.
        smoothing: added to the sum of squares, > 0: without it the gradient of an inactive group is infinite.

    Returns:
        (N, groups), in float32 or wider.

    Raises:
        MethodError: C cannot be divided into so many groups.

    References:
        Pogodin, Latham, Kernelized information bottleneck leads to biologically plausible 3-factor Hebbian
        learning in deep networks, NeurIPS 2020, https://arxiv.org/abs/2006.07123

    >>> group_deviations(torch.tensor([[1.0, -1.0, 3.0, 3.0]]), groups=2, power=1.0).tolist()  # 1.5 and 0.5
    [[0.5, -0.5]]
    """
    channels, elements = z.shape[1], z.shape[1:].numel()
    if groups < 2 or channels % groups or elements < 2 * groups:
        raise MethodError(
            f"groups={groups} was given for {channels} channels of {elements // channels} positions, expected a "
            "divisor of the channels, 2 or more, that leaves two elements in a group"
        )
    grouped = widened(z).reshape(len(z), groups, -1)
    squares = (grouped - grouped.mean(2, keepdim=True)).square().sum(2)
    deviations = ((squares + smoothing) / grouped.shape[2]) ** power
    return deviations - deviations.mean(1, keepdim=True)
