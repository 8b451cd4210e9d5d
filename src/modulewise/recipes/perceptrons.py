"""Perceptrons of one wide hidden layer, by the name `modulewise.recipes.perceptrons:FUNCTION`."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ..models import Shape

__all__ = ["wide_mlp", "wide_mlp_512", "wide_mlp_2000"]


def wide_mlp(shape: Shape, classes: int, *, width: int = 1000) -> nn.Sequential:
    """A perceptron with one hidden block fc1 (Linear, ReLU) and a linear head.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        width: units of the hidden block, >= 1.

    >>> wide_mlp((1, 2, 2), 3, width=5).head
    Linear(in_features=5, out_features=3, bias=True)
    """
    features = shape[0] * shape[1] * shape[2]
    hidden = nn.Sequential(OrderedDict(linear=nn.Linear(features, width), relu=nn.ReLU()))
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc1=hidden, head=nn.Linear(width, classes)))


def wide_mlp_512(shape: Shape, classes: int) -> nn.Sequential:
    """`wide_mlp` with 512 hidden units.

    >>> wide_mlp_512((1, 2, 2), 3).head.in_features
    512
    """
    return wide_mlp(shape, classes, width=512)


def wide_mlp_2000(shape: Shape, classes: int) -> nn.Sequential:
    """`wide_mlp` with 2000 hidden units.

    >>> wide_mlp_2000((1, 2, 2), 3).head.in_features
    2000
    """
    return wide_mlp(shape, classes, width=2000)
