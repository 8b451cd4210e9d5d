"""Exact damped Gauss-Newton steps, one a sample: Jacobians by vectorised autograd, and the solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...losses.rows import widened, without_autocast
from ..objectives import output_tensor

__all__ = ["gauss_newton_step", "jacobians"]


def jacobians(function: Callable[[Tensor], Any], h: Tensor) -> Tensor:
    """J_n = d a_n / d h_n for every sample, with a = function(h).

    All rows of all samples in one vectorised backward pass: it costs as much work as one backward pass for each element
    of the output. Where samples depend on one another (batch normalisation in training), it is d(sum_m a_m)/d h_n.

    Args:
        function: from h (N, ...) to the model's raw output, (N, ...) with M elements a sample; differentiable.
        h: (N, ...) with F elements a sample.

    Returns:
        (N, M, F), in float32 at least, without a graph.

    >>> weight = torch.arange(6.0).reshape(2, 3)
    >>> torch.equal(jacobians(lambda h: h @ weight.T, torch.ones(4, 3)), weight.expand(4, 2, 3))
    True
    """
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        # Hooks of counters and profilers on a module's input refuse a leaf that a gradient is asked for.
        output = output_tensor(function(leaf.view_as(leaf))).flatten(1)
        samples, size = output.shape
        pushed = torch.eye(size, dtype=output.dtype, device=output.device)[:, None].expand(size, samples, size)
        (rows,) = torch.autograd.grad(output, leaf, pushed, is_grads_batched=True)
    return widened(rows.flatten(2).movedim(0, 1))


def gauss_newton_step(jacobian: Tensor, step: Tensor, *, damping: float) -> Tensor:
    """J^T (J J^T + damping I)^-1 step for every sample; with damping 0 the pseudo-inverse, J^+ step.

    Args:
        jacobian: J, (N, M, F), or one for all samples, (M, F).
        step: how the output is to move, (N, M).
        damping: >= 0.

    Returns:
        How h is to move, (N, F).

    >>> gauss_newton_step(torch.tensor([[2.0, 0.0]]), torch.tensor([[4.0]]), damping=0.0)
    tensor([[2., 0.]])
    """
    with without_autocast(jacobian):
        column = widened(step).unsqueeze(-1)
        if damping == 0:
            return (torch.linalg.pinv(jacobian) @ column).squeeze(-1)
        gram = jacobian @ jacobian.mT
        damped = gram + damping * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return (jacobian.mT @ torch.linalg.solve(damped, column)).squeeze(-1)
