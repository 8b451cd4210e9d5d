"""Local propagation: the Lagrangian of a network whose activations are variables tied by constraints.

Parts f_1..f_K, activations x_1..x_{K-1} (N, ...) with multipliers lambda_k of the same shapes, x_0 the input. With a
mean over N samples the Lagrangian is

    L = loss(f_K(x_{K-1}), y) + 1/N sum_n sum_{k<K} lambda_kn . G(e_kn) + damping/2 ||G(e_kn)||^2,
    e_k = x_k - f_k(x_{k-1})

where G acts on every element and G(0) = 0. Where dL/dx = 0 and all e = 0 (G the identity), lambda_k = -N dloss/dx_k:
the multipliers are backpropagation's errors, and dL/dW is its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from .part_runs import Run, Task

__all__ = ["Constraint", "constraint", "insensitive", "lagrangian_share", "zeros"]

Constraint = Callable[[Tensor], Tensor]
"""G(e), element by element, G(0) = 0."""


def insensitive(error: Tensor, *, epsilon: float, absolute: bool) -> Tensor:
    """G(e) = max(e, eps) - max(-e, eps), or max(|e| - eps, 0): violations up to eps are free.

    Args:
        error: e, any shape.
        epsilon: eps >= 0.
        absolute: the second form.

    >>> insensitive(torch.tensor([-3.0, 0.5, 2.0]), epsilon=1.0, absolute=False)
    tensor([-2.,  0.,  1.])
    >>> insensitive(torch.tensor([-3.0, 0.5, 2.0]), epsilon=1.0, absolute=True)
    tensor([2., 0., 1.])
    """
    if absolute:
        return (error.abs() - epsilon).clamp(min=0)
    return functional.softshrink(error, epsilon) if epsilon else error


def constraint(epsilon: float, *, absolute: bool) -> Constraint:
    """G as a function of the error alone."""
    return partial(insensitive, epsilon=epsilon, absolute=absolute)


def lagrangian_share(
    part: int,
    run: Run,
    activations: Sequence[Tensor],
    multipliers: Sequence[Tensor],
    task: Task,
    *,
    tie: Constraint,
    damping: float,
) -> tuple[Tensor, Tensor | None]:
    """A part's terms of L, and G(e) (N, ...), which is N times their gradient in the part's multipliers.

    Args:
        part: its index, from 0; the last has the task loss and no constraint.
        run: the parts.
        activations: x_1..x_{K-1}, each (N, ...).
        multipliers: lambda_1..lambda_{K-1}, of the same shapes.
        task: the task loss of an output.
        tie: G.
        damping: weight of the quadratic term, >= 0.

    >>> one = torch.ones(1, 1)
    >>> share, g = lagrangian_share(0, lambda part, x: 0 * one, [2 * one], [3 * one], torch.sum, tie=abs, damping=1.0)
    >>> share.item(), g.item()
    (8.0, 2.0)
    """
    output = run(part, activations)
    if part == len(activations):
        return task(output), None
    violation = tie(activations[part] - output)
    terms = multipliers[part] * violation
    if damping:
        terms = terms + damping / 2 * violation.square()
    return terms.sum() / len(violation), violation.detach()


def zeros(activations: Sequence[Tensor]) -> list[Tensor]:
    """Multipliers to begin with."""
    return [torch.zeros_like(h) for h in activations]
