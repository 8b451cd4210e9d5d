"""Kernels that a network induces, and the range of their values (Duan, Yu and Principe)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import MethodError
from .rows import unit_rows, widened, without_autocast

__all__ = ["COSINE", "KERNELS", "LINEAR", "RELU", "SIGMOID", "TANH", "Kernel", "gaussian"]


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


def _linear_gram(h: Tensor) -> Tensor:
    with without_autocast(h):
        u = widened(h).flatten(1)
        return u @ u.T


def _cosine_gram(h: Tensor) -> Tensor:
    with without_autocast(h):
        u = unit_rows(widened(h).flatten(1))
        return u @ u.T


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
LINEAR = Kernel("linear", _linear_gram, -float("inf"), float("inf"))
"""k(u, v) = u . v, unbounded: for dependence measures, which need no ideal value (pairwise objectives do)."""
COSINE = Kernel("cosine", _cosine_gram, -1.0, 1.0)
"""k(u, v) = u . v / (||u|| ||v||), in [-1, 1]; a sample of zeros has k = 0 to all, itself included."""
KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {kernel.name: kernel for kernel in (COSINE, LINEAR, RELU, SIGMOID, TANH)}
)
"""The kernels without a parameter, by name."""


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
