"""How far two gradients are apart."""

from __future__ import annotations

from torch import Tensor

from ..errors import MethodError
from .rows import widened

__all__ = ["gradient_distance"]


def gradient_distance(gradient: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of the squared distance of per-sample gradients, N ||gradient - target||^2.

    Losses are means over N samples, so that a sample's own gradient is N times its row of either argument:
    mean_n ||N gradient_n - N target_n||^2 = N sum_n ||gradient_n - target_n||^2.

    Args:
        gradient: of a mean loss with respect to a boundary, (N, ...).
        target: of another mean loss with respect to the same boundary, (N, ...).

    Raises:
        MethodError: the shapes differ.

    >>> import torch
    >>> gradient_distance(torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1)).item()
    2.0
    """
    if gradient.shape != target.shape:
        raise MethodError(
            f"gradients of shapes {tuple(gradient.shape)} and {tuple(target.shape)} were given, expected those of one "
            "boundary"
        )
    return len(gradient) * (widened(gradient) - widened(target)).square().sum()
