"""A head that projects a boundary to the space in which a contrastive loss compares samples."""

from __future__ import annotations

from torch import nn

from ..partition.boundary import Boundary
from .classifying import mlp

__all__ = ["projection"]


def projection(boundary: Boundary, outputs: int, *, dense: bool = False) -> nn.Module:
    """SimCLR's projection, W2 relu(W1 mean(h) + b1) + b2: mean over positions, one hidden layer, linear.

    Args:
        boundary: where the head sits.
        outputs: dimensions of the projection, >= 1.
        dense: one projection per position instead.

    Returns:
        h -> (N, outputs); the hidden layer has as many units as the boundary has channels.

    Raises:
        MethodError: outputs is below 1, or a dense head was asked of a boundary without positions.

    References:
        Chen, Kornblith, Norouzi and Hinton, A Simple Framework for Contrastive Learning of Visual
        Representations, ICML 2020, https://arxiv.org/abs/2002.05709

    >>> import torch
    >>> projection(Boundary("layer1", (2, 16, 8, 8)), 128)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 128])
    """
    return mlp(boundary, outputs, dense=dense, depth=1, pool=1)
