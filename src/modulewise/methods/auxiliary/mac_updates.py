"""The method of auxiliary coordinates: its penalised objective, part by part, and descent in the coordinates.

Parts f_1..f_K, coordinates z_1..z_{K-1} (N, ...), z_0 = x. With a mean over N samples the objective is

    E = loss(f_K(z_{K-1}), y) + mu/2 sum_{k<K} 1/N sum_n ||z_kn - f_k(z_{k-1,n})||^2

(the quadratic-penalty form, divided by N). A part reads further coordinates where the model has skips.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .part_runs import Run, Task, squared_distance

__all__ = ["mac_coordinates", "mac_penalty", "mac_share"]


def mac_penalty(*, mu: float, growth: float, every: int, limit: float, step: int) -> float:
    """The mu of a step: multiplied by growth every so many steps, never above the limit.

    >>> [mac_penalty(mu=1.0, growth=10.0, every=2, limit=50.0, step=step) for step in range(5)]
    [1.0, 1.0, 10.0, 10.0, 50.0]
    """
    grown = mu
    for _ in range(step // every):
        if grown >= limit or growth == 1:
            break
        grown *= growth
    return min(grown, limit)


def mac_share(part: int, run: Run, coordinates: Sequence[Tensor], task: Task, *, mu: float) -> Tensor:
    """A part's term of E: the task loss for the last, mu/2 times the squared distance to its coordinate for others.

    Args:
        part: its index, from 0.
        run: the parts.
        coordinates: z_1..z_{K-1}, each (N, ...).
        task: the task loss of an output.
        mu: weight of the penalties.
    """
    output = run(part, coordinates)
    if part == len(coordinates):
        return task(output)
    return mu / 2 * squared_distance(coordinates[part], output)


def mac_coordinates(
    run: Run, start: Sequence[Tensor], task: Task, *, mu: float, rate: float, steps: int
) -> list[Tensor]:
    """The Z-step: gradient descent from `start` in all coordinates together, z <- z - rate N/mu dE/dz.

    N/mu makes a step the same for every batch size, and stable for every mu: the penalties then have curvature
    (1 + ||df||)^2 at most, whatever mu is.

    Args:
        run: the parts, with fixed weights.
        start: z_1..z_{K-1}, each (N, ...); left alone.
        task: the task loss of an output.
        mu: weight of the penalties, > 0.
        rate: of a step, > 0.
        steps: number of steps.

    >>> double = lambda part, z: 2 * z[0] if part else torch.ones(1, 1)
    >>> mac_coordinates(double, [torch.ones(1, 1)], lambda out: out.square().sum() / 2, mu=1.0, rate=0.2, steps=50)
    [tensor([[0.2000]])]
    """
    if not start:
        return []
    with torch.no_grad():
        first = run(0, start)
    z = [h.detach().clone().requires_grad_() for h in start]
    optimizer = torch.optim.SGD(z, lr=rate)
    last = len(z)
    for _ in range(steps):
        for part in range(last + 1):
            share = mu / 2 * squared_distance(z[0], first) if part == 0 else mac_share(part, run, z, task, mu=mu)
            (len(z[0]) / mu * share).backward(inputs=z)
        optimizer.step()
        optimizer.zero_grad()
    return [h.detach() for h in z]
