"""Online alternating minimisation: the objective of a code, and codes updated from the top down.

Parts f_1..f_K, codes c_1..c_{K-1} (N, ...) at the boundaries, c_0 = x. Code c_l, its value h_l in the forward pass and
the codes above it fixed, minimises, as a mean over N samples,

    1/N sum_n ||c_ln - h_ln||^2 + 1/N sum_n ||f_{l+1}(c_ln) - c_{l+1,n}||^2     for l < K-1
    1/N sum_n ||c_ln - h_ln||^2 + 1/mu loss(f_K(c_l), y)                        for l = K-1

plus sparsity/mu 1/N sum_n |c_ln|_1. A code that several parts read (a skip) has a term for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .part_runs import Run, Task, squared_distance

__all__ = ["altmin_codes", "altmin_share", "code_objective"]


def code_objective(
    index: int,
    run: Run,
    codes: Sequence[Tensor],
    initial: Tensor,
    readers: Sequence[int],
    task: Task,
    *,
    mu: float,
    sparsity: float = 0.0,
) -> Tensor:
    """What code `index` minimises, a scalar.

    Args:
        index: of the code, from 0: that of the part it leaves.
        run: the parts.
        codes: all codes, each (N, ...).
        initial: its value in the forward pass (N, ...).
        readers: the parts that read it.
        task: the task loss of an output.
        mu: weight of squared distances against the task loss, > 0.
        sparsity: weight of |c|_1, >= 0.
    """
    code = codes[index]
    objective = squared_distance(code, initial)
    for part in readers:
        output = run(part, codes)
        last = part == len(codes)
        objective = objective + (task(output) / mu if last else squared_distance(output, codes[part]))
    return objective + sparsity / mu * code.abs().sum() / len(code) if sparsity else objective


def altmin_codes(
    run: Run,
    start: Sequence[Tensor],
    readers: Sequence[Sequence[int]],
    task: Task,
    *,
    mu: float,
    rate: float,
    momentum: float,
    steps: int,
    sparsity: float = 0.0,
) -> list[Tensor]:
    """Codes after gradient steps from the forward pass, c <- c - rate N dE/dc, the highest first.

    Args:
        run: the parts, with fixed weights.
        start: the forward pass, h_1..h_{K-1}, each (N, ...); left alone.
        readers: for every code the parts that read it.
        task: the task loss of an output.
        mu: weight of squared distances against the task loss, > 0.
        rate: of a step, > 0; N makes it the same for every batch size.
        momentum: Nesterov's, 0 <= momentum < 1.
        steps: for every code.
        sparsity: weight of |c|_1, >= 0.

    >>> double = lambda part, c: 2 * c[0]
    >>> half_square = lambda out: out.square().sum() / 2
    >>> altmin_codes(double, [torch.ones(1, 1)], [[1]], half_square, mu=1.0, rate=0.1, momentum=0.0, steps=1)
    [tensor([[0.6000]])]
    """
    codes = [h.detach() for h in start]
    for index in reversed(range(len(codes))):
        code = codes[index] = codes[index].clone().requires_grad_()
        optimizer = torch.optim.SGD([code], lr=rate, momentum=momentum, nesterov=momentum > 0)
        for _ in range(steps):
            objective = code_objective(index, run, codes, start[index], readers[index], task, mu=mu, sparsity=sparsity)
            (len(code) * objective).backward(inputs=[code])
            optimizer.step()
            optimizer.zero_grad()
        codes[index] = code.detach()
    return codes


def altmin_share(part: int, run: Run, codes: Sequence[Tensor], task: Task) -> Tensor:
    """What a part's weights minimise: 1/N sum_n ||f(c_n) - c'_n||^2 to the code above; for the last the task loss."""
    output = run(part, codes)
    return task(output) if part == len(codes) else squared_distance(output, codes[part])
