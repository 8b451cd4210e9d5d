"""Pairwise objectives on a kernel's Gram matrix, to be maximised (Duan, Yu and Principe)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..errors import MethodError
from .rows import same_class, unit_rows, widened, without_autocast

__all__ = [
    "RELU",
    "SIGMOID",
    "TANH",
    "Kernel",
    "PairwiseObjective",
    "alignment",
    "contrastive",
    "gaussian",
    "ideal_gram",
    "nmse",
    "raw",
    "upper_triangle_alignment",
]


@dataclass(frozen=True)
class Kernel:
    """A kernel on representations: how to compute its Gram matrix, and the range of its values.

    Args:
        name: shown in reports.
        gram: h (N, ...) -> (N, N).
        minimum: the infimum of k, which the kernel should take across classes.
        maximum: the supremum of k, which it should take within a class.

    >>> TANH.gram(torch.tensor([[9.0, 0.0], [0.0, -9.0]])).abs().round().tolist(), TANH.minimum
    ([[1.0, 0.0], [0.0, 1.0]], -1.0)
    """

    name: str
    gram: Callable[[Tensor], Tensor] = field(repr=False)
    minimum: float
    maximum: float


def _feature_gram(h: Tensor, *, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """k(u, v) = phi(u) . phi(v), phi(u) = activation(u) / ||activation(u)||."""
    with without_autocast(h):
        phi = unit_rows(activation(widened(h).flatten(1)))
        return phi @ phi.T


def _gaussian_gram(h: Tensor, *, width: float) -> Tensor:
    with without_autocast(h):
        u = widened(h).flatten(1)
        u = u - u.mean(dim=0)  # distances do not change, and less is lost where they are small beside the norms
        square = u.square().sum(1)
        distance = (square[:, None] + square[None, :] - 2 * (u @ u.T)).clamp_min(0.0)
        return torch.exp(-distance / (2 * width**2))


TANH = Kernel("tanh", partial(_feature_gram, activation=torch.tanh), -1.0, 1.0)
"""k(u, v) of normalised tanh features, in [-1, 1]."""
SIGMOID = Kernel("sigmoid", partial(_feature_gram, activation=torch.sigmoid), 0.0, 1.0)
"""k(u, v) of normalised sigmoid features, in [0, 1]."""
RELU = Kernel("relu", partial(_feature_gram, activation=torch.relu), 0.0, 1.0)
"""k(u, v) of normalised ReLU features, in [0, 1]; a sample without a positive feature has k = 0 to all."""


def gaussian(width: float) -> Kernel:
    """The Gaussian kernel exp(-||u - v||^2 / (2 width^2)), in (0, 1].

    Args:
        width: in units of the representation, > 0.

    Raises:
        MethodError: the width is not positive.

    >>> gaussian(2.0)
    Kernel(name='gaussian(2)', minimum=0.0, maximum=1.0)
    """
    if not width > 0:
        raise MethodError(f"width={width} was given, the Gaussian kernel needs a positive one; try 1.0")
    return Kernel(f"gaussian({width:g})", partial(_gaussian_gram, width=width), 0.0, 1.0)


class PairwiseObjective(Protocol):
    """objective(gram, y, minimum=..., maximum=...) -> scalar, to be maximised."""

    def __call__(self, gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float) -> Tensor:
        """The objective of one batch."""


def _pairs(y: Tensor) -> Tensor:
    """Pairs of the same class (N, N), after making sure that there are pairs of different classes as well."""
    same = same_class(y)
    # Reading labels on another device would make the host wait for it at every step.
    if y.device.type == "cpu" and bool(same.all()):
        raise MethodError(
            f"a batch of {len(y)} samples of one class was given, a pairwise objective needs two or more "
            "in every batch; shuffle the data, enlarge the batch or drop the last one"
        )
    return same


def _off_diagonal(gram: Tensor) -> Tensor:
    return ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return (a * b).sum() / torch.where(norms > 0, norms, torch.ones_like(norms))


def ideal_gram(y: Tensor, *, minimum: float, maximum: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The Gram matrix G* to reach: the kernel's maximum within a class, its minimum across classes.

    Args:
        y: class indices (N,).
        minimum: the infimum of the kernel.
        maximum: the supremum of the kernel.
        dtype: element type of the result.

    Returns:
        (N, N).

    >>> ideal_gram(torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    same = same_class(y).to(dtype)
    return maximum * same + minimum * (1 - same)


def raw(gram: Tensor, y: Tensor, /, *, minimum: float = 0.0, maximum: float = 1.0) -> Tensor:
    """Mean signed kernel value over pairs n != m, (sum_same k - sum_different k) / #pairs.

    Args:
        gram: G (N, N).
        y: class indices (N,), two classes or more.
        minimum: not used; part of the signature that pairwise objectives share.
        maximum: not used, likewise.

    Raises:
        MethodError: all samples are of one class (looked at on the CPU only), or y is not (N,).

    >>> raw(torch.ones(2, 2), torch.tensor([0, 1])).item()
    -1.0
    """
    sign = 2 * _pairs(y).to(gram.dtype) - 1
    return (gram * sign * _off_diagonal(gram)).sum() / (len(gram) * (len(gram) - 1))


def nmse(gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float) -> Tensor:
    """Negative mean squared error to the ideal Gram matrix, -mean_nm (G_nm - G*_nm)^2, diagonal included.

    Args:
        gram: G (N, N).
        y: class indices (N,), two classes or more.
        minimum: the infimum of the kernel.
        maximum: the supremum of the kernel.

    Raises:
        MethodError: all samples are of one class (looked at on the CPU only), or y is not (N,).

    >>> nmse(torch.ones(2, 2), torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).item()
    -2.0
    """
    _pairs(y)
    ideal = ideal_gram(y, minimum=minimum, maximum=maximum, dtype=gram.dtype)
    return -(gram - ideal).square().mean()


def alignment(gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float) -> Tensor:
    """Kernel alignment, the cosine of vec G and vec G* over pairs n != m; 1 for perfect clusters.

    Where G or G* is zero on all pairs (no two samples of one class, and a minimum of 0) the value is 0
    and so is the gradient.

    Args:
        gram: G (N, N).
        y: class indices (N,), two classes or more.
        minimum: the infimum of the kernel.
        maximum: the supremum of the kernel.

    Raises:
        MethodError: all samples are of one class (looked at on the CPU only), or y is not (N,).

    >>> gram = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    >>> round(alignment(gram, torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).item(), 6)
    1.0
    """
    _pairs(y)
    pairs = _off_diagonal(gram)
    return _cosine(gram * pairs, ideal_gram(y, minimum=minimum, maximum=maximum, dtype=gram.dtype) * pairs)


def upper_triangle_alignment(gram: Tensor, y: Tensor, /, *, minimum: float, maximum: float) -> Tensor:
    """Kernel alignment over pairs n < m; equal to `alignment` where G is symmetric, as every Gram matrix is.

    Args:
        gram: G (N, N).
        y: class indices (N,), two classes or more.
        minimum: the infimum of the kernel.
        maximum: the supremum of the kernel.

    Raises:
        MethodError: all samples are of one class (looked at on the CPU only), or y is not (N,).

    >>> gram = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    >>> upper_triangle_alignment(gram, torch.tensor([0, 1]), minimum=-1.0, maximum=1.0).item()
    1.0
    """
    _pairs(y)
    ideal = ideal_gram(y, minimum=minimum, maximum=maximum, dtype=gram.dtype)
    return _cosine(gram.triu(1), ideal.triu(1))


def contrastive(gram: Tensor, y: Tensor, /, *, minimum: float = 0.0, maximum: float = 1.0) -> Tensor:
    """Share of the pairs of one class, sum_same e^k / sum_all e^k over pairs n != m, in [0, 1].

    Args:
        gram: G (N, N).
        y: class indices (N,), two classes or more.
        minimum: not used; part of the signature that pairwise objectives share.
        maximum: not used, likewise.

    Raises:
        MethodError: all samples are of one class (looked at on the CPU only), or y is not (N,).

    >>> round(contrastive(torch.zeros(3, 3), torch.tensor([0, 0, 1])).item(), 4)
    0.3333
    """
    weights = gram.exp() * _off_diagonal(gram)
    return (weights * _pairs(y)).sum() / weights.sum()
