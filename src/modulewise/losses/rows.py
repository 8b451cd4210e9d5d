"""Small numerics that several losses share: precision, rows of unit length, pairs of the same class."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..errors import MethodError

__all__ = ["compared", "same_class", "unit_rows", "widened", "without_autocast"]


def widened(h: Tensor) -> Tensor:
    """H in float32, or in float64 where it is float64 already: sums over many elements need the digits.

    >>> [widened(torch.zeros(1, dtype=d)).dtype for d in (torch.bfloat16, torch.float64)]
    [torch.float32, torch.float64]
    """
    return h.to(torch.promote_types(h.dtype, torch.float32))


def without_autocast(h: Tensor) -> AbstractContextManager[object]:
    """Autocast off for h's device: a Gram matrix in bfloat16 keeps eight bits of every similarity.

    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.zeros(1)):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    kind = h.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def unit_rows(s: Tensor) -> Tensor:
    """Rows of s (N, D) divided by their Euclidean norm; a zero row stays zero, with a finite gradient.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norm = torch.linalg.vector_norm(s, dim=1, keepdim=True)
    return s / torch.where(norm > 0, norm, torch.ones_like(norm))


def same_class(y: Tensor) -> Tensor:
    """Which pairs of the batch share their class.

    Args:
        y: class indices (N,).

    Returns:
        (N, N), boolean, true on the diagonal.

    Raises:
        MethodError: y is not one integer class per sample.

    >>> same_class(torch.tensor([0, 1, 0])).int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    if y.dim() != 1 or y.is_floating_point():
        raise MethodError(
            f"labels of shape {tuple(y.shape)} and type {y.dtype} were given, a loss on pairs needs one "
            "integer class per sample, (N,); choose another method for this task"
        )
    return y[:, None] == y[None, :]


def compared(y: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs of the batch share their class, and which are known at all.

    Args:
        y: class indices (N,), with which all pairs are known; or int8 (N, N): 1 one class, -1 two, 0 not known.

    Returns:
        Two boolean matrices (N, N), new tensors; the first is false where the second is.

    Raises:
        MethodError: y is neither.

    >>> [matrix.int().tolist() for matrix in compared(torch.tensor([[1, 0], [0, 1]], dtype=torch.int8))]
    [[[1, 0], [0, 1]], [[1, 0], [0, 1]]]
    """
    if y.dtype == torch.int8 and y.dim() == 2:
        return y > 0, y != 0
    same = same_class(y)
    return same, torch.ones_like(same)
