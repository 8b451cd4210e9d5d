"""The output block of deep cascade learning: flatten, two hidden layers, linear."""

from __future__ import annotations

from torch import nn

from ..partition.boundary import Boundary
from .layers import at_least_one, finished, flat, sizes_within, working_layout

__all__ = ["output_block"]


def output_block(
    boundary: Boundary, outputs: int, *, width: int = 512, dropout: float = 0.5, pool: int | None = None
) -> nn.Module:
    """Flatten, drop, linear to `width`, ReLU, drop, linear to width / 2, ReLU, linear.

    Args:
        boundary: where the head sits; tokens are averaged instead of flattened.
        outputs: logits per sample, >= 1.
        width: units of the first hidden layer, >= 1; the second has half of them (rounded down, at least one).
        dropout: probability of dropping an input of each hidden layer, in [0, 1).
        pool: size that each spatial axis is averaged to first, >= 1; None keeps all positions.

    Returns:
        h -> (N, outputs).

    Raises:
        MethodError: a size is below 1.

    >>> import torch
    >>> output_block(Boundary("layer1", (2, 16, 8, 8)), 10, width=32)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 10])
    """
    at_least_one(outputs=outputs, width=width, pool=pool)
    sizes = tuple(boundary.spatial) if pool is None else sizes_within(boundary.spatial, pool)
    layers, features = flat(boundary, boundary.channels, sizes)
    half = max(1, width // 2)
    block = [
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(features, width),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(width, half),
        nn.ReLU(),
        nn.Linear(half, outputs),
    ]
    return finished(boundary, [*working_layout(boundary), *layers, *block])
