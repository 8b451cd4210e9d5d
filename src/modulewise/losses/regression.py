"""Distance of a representation to a target: reconstructions and target propagation."""

from __future__ import annotations

from torch import Tensor

from ..errors import MethodError
from .rows import widened

__all__ = ["sum_squared_error"]


def sum_squared_error(h: Tensor, target: Tensor, *, scale: float = 1.0) -> Tensor:
    """Squared distance to a target, scale * mean_n sum_d (h_nd - target_nd)^2.

    The sum over features, not their mean, makes the gradient of one sample 2 scale (h - target) / N whatever
    the width, which is the convention of target propagation (with scale 1/2: the error itself).

    Args:
        h: (N, ...).
        target: same shape as h; no broadcasting, which would hide a wrong shape.
        scale: factor, default 1.

    Raises:
        MethodError: the shapes differ.

    >>> import torch
    >>> sum_squared_error(torch.ones(4, 3), torch.zeros(4, 3), scale=0.5).item()
    1.5
    """
    if h.shape != target.shape:
        raise MethodError(
            f"a representation {tuple(h.shape)} and a target {tuple(target.shape)} were given, expected the "
            "same shape; reshape the target"
        )
    return scale * (widened(h) - widened(target)).square().flatten(1).sum(1).mean()
