"""Networks whose blocks begin by normalising their input, so that a block cannot read the length of the one below."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .builtin import Shape

__all__ = ["rms_mlp"]


def rms_mlp(shape: Shape, classes: int, *, width: int = 500, depth: int = 3) -> nn.Sequential:
    """A perceptron with hidden blocks fc1, fc2, ... (root mean square normalisation, Linear, ReLU) and a linear head.

    The first block takes the input as it is; the head begins with the normalisation as well. No scale is learned.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        width: units of a hidden block, >= 1.
        depth: number of hidden blocks, >= 1.

    References:
        G. Hinton, The Forward-Forward Algorithm: Some Preliminary Investigations, arXiv 2022,
        https://arxiv.org/abs/2212.13345

    >>> [name for name, _ in rms_mlp((1, 8, 8), 10).named_children()]
    ['flatten', 'fc1', 'fc2', 'fc3', 'head']
    """
    features = shape[0] * shape[1] * shape[2]
    blocks = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    for index in range(1, depth + 1):
        layers = OrderedDict[str, nn.Module]()
        if index > 1:
            layers["norm"] = nn.RMSNorm(features, eps=1e-6, elementwise_affine=False)
        layers |= {"linear": nn.Linear(features, width), "relu": nn.ReLU()}
        blocks[f"fc{index}"] = nn.Sequential(layers)
        features = width
    norm = nn.RMSNorm(features, eps=1e-6, elementwise_affine=False)
    blocks["head"] = nn.Sequential(OrderedDict(norm=norm, linear=nn.Linear(features, classes)))
    return nn.Sequential(blocks)
