"""Convex problems of one block of a lifted network: ridge regression, and monotone accelerated proximal steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .lifted_chain import map_rows

__all__ = ["accelerated", "fitted_map", "ridge", "stiffness"]


def stiffness(free: Tensor, *, proximal: float, like: Tensor) -> Tensor:
    """The weight of the proximal term of every column of a map: `proximal` where it is free, infinite where frozen."""
    return torch.where(free, torch.full_like(like[0], proximal), torch.full_like(like[0], torch.inf))


def ridge(rows: Tensor, *, weight: float, stiff: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression on rows R (N, in), for any targets T (N, out).

    Args:
        rows: R.
        weight: of the squares, > 0.
        stiff: of every column of D, (in,), > 0; infinite for a column that must be 0.

    Returns:
        T -> argmin_D weight/2 ||R D^T - T||^2 + 1/2 sum_j stiff_j ||D_j||^2, (out, in).

    >>> ridge(torch.ones(1, 1), weight=1.0, stiff=torch.ones(1))(torch.ones(1, 1))
    tensor([[0.5000]])
    """
    scale = stiff.rsqrt()
    scaled = rows * scale
    dual = scaled.shape[0] < scaled.shape[1]
    gram = weight * (scaled @ scaled.T if dual else scaled.T @ scaled)
    gram.diagonal().add_(1)
    # No check, which would make the host wait: numbers that are not finite show in the objective.
    factor = torch.linalg.cholesky_ex(gram).L

    def solve(target: Tensor) -> Tensor:
        if dual:
            found = scaled.T @ torch.cholesky_solve(weight * target, factor)
        else:
            found = torch.cholesky_solve(weight * (scaled.T @ target), factor)
        return (scale[:, None] * found).T

    return solve


def accelerated(
    start: Tensor, *, step: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor], steps: int
) -> Tensor:
    """Accelerated proximal gradient steps that never raise an objective >= 0; rows are problems of their own.

    z = step(y); a row that is not better than x stays at x and starts anew without momentum, where a plain step cannot
    be worse.

    Args:
        start: x, (rows, columns).
        step: the minimiser of an upper bound that touches the objective at y.
        value: the objective of every row, >= 0, (rows,), or one number for all, (1,).
        steps: how many, >= 1.

    References:
        A. Beck, M. Teboulle, Fast Gradient-Based Algorithms for Constrained Total Variation Image Denoising and
        Deblurring Problems, IEEE Transactions on Image Processing 2009, https://doi.org/10.1109/TIP.2009.2028250;
        the restart: B. O'Donoghue, E. Candès, Adaptive Restart for Accelerated Gradient Schemes, 2015,
        https://arxiv.org/abs/1204.3982.

    >>> accelerated(torch.ones(1, 1), step=lambda x: x / 2, value=lambda x: x.square().sum(1), steps=1)
    tensor([[0.5000]])
    """
    x = y = start
    present = value(x)
    # Below rounding, values cannot tell points apart that are 1e-8 away from each other.
    slack = 1 + 4 * torch.finfo(present.dtype).eps
    momentum = torch.ones_like(present)
    for _ in range(steps):
        z = step(y)
        reached = value(z)
        better = reached <= present * slack
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = z + ((momentum - 1) / following)[:, None] * (z - x)
        x = torch.where(better[:, None], z, x)
        y = torch.where(better[:, None], ahead, x)
        present = torch.where(better, reached, present)
        momentum = torch.where(better, following, torch.ones_like(following))
    return x


def fitted_map(
    x: Tensor,
    map_: Tensor,
    *,
    value: Callable[[Tensor], Tensor],
    error: Callable[[Tensor], Tensor],
    curvature: float,
    stiff: Tensor,
    steps: int,
) -> Tensor:
    """argmin_M 1/N sum c(R M^T) + 1/2 sum_j stiff_j ||M_j - present M_j||^2, by accelerated proximal gradient steps.

    Each step is a ridge regression, since c is bounded by a parabola in Z = R M^T: the metric is that of the rows, so
    that a badly scaled input costs no steps.

    Args:
        x: what the layer reads, (N, in).
        map_: the present M.
        value: N times the terms of c in Z (N, out), of every output (out,), or of all together (1,).
        error: the derivative of c at Z, (N, out).
        curvature: what no second derivative of c exceeds.
        stiff: (in + 1,) or (in,), infinite for frozen columns.
        steps: how many, >= 1.
    """
    rows = map_rows(x, map_)
    solve = ridge(rows, weight=curvature / len(rows), stiff=stiff)
    finite = torch.where(stiff.isinf(), torch.zeros_like(stiff), stiff)
    base = rows @ map_.T

    def bounded(change: Tensor) -> Tensor:
        moved = rows @ change.T
        return solve(moved - error(base + moved) / curvature)

    def objective(change: Tensor) -> Tensor:
        near = (change.square() * finite).sum(1) / 2
        fit = value(base + rows @ change.T) / len(rows)
        return fit + (near if fit.shape == near.shape else near.sum())

    change = accelerated(torch.zeros_like(map_), step=bounded, value=objective, steps=steps)
    return map_ + change
