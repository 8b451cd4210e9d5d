"""The minimum of cross entropy plus a squared distance, entry by entry exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["softmax_proximal", "wright_omega"]


def wright_omega(w: Tensor) -> Tensor:
    """The x > 0 with x + log x = w, for w > -700, to rounding in float64.

    >>> x = wright_omega(torch.tensor([-3.0, 1.0, 50.0], dtype=torch.float64))
    >>> x + x.log()
    tensor([-3.,  1., 50.], dtype=torch.float64)
    """
    large = w.clamp(min=1.5)
    x = torch.where(w > 1.5, large - large.log() + large.log() / large, torch.nn.functional.softplus(w - 0.5))
    x = torch.where(w < -1, w.clamp(max=0).exp(), x)
    for _ in range(2):  # each of fourth order (Fritsch, Shafer and Crowley)
        rest = w - x - x.log()
        t = 2 * (1 + x) * (1 + x + 2 * rest / 3)
        x = x * (1 + rest / (1 + x) * (t - rest) / (t - 2 * rest))
    return x


def softmax_proximal(centre: Tensor, targets: Tensor, rho: float, *, rounds: int = 12) -> Tensor:
    """argmin_z of sum_n [logsumexp(z_n) - <y_n, z_n>] + rho/2 ||z - centre||^2, (N, classes).

    With p = softmax(z) the minimum is z = q - p / rho, q = centre + y / rho; so x = p / rho fulfils x + log x = q - log
    rho - s, s = logsumexp(z), and s is where the x of a sample sum to 1 / rho. That sum is convex and falls in s: from
    below Newton's steps rise to s and never pass it.

    Args:
        centre: (N, classes).
        targets: y, one-hot (N, classes).
        rho: > 0.
        rounds: steps of Newton's method.

    >>> softmax_proximal(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 1.0)
    tensor([[ 0.3374, -0.3374]])
    """
    q = centre.double() + targets.double() / rho
    peak = q.amax(1, keepdim=True)
    # Relative to the peak, so that large numbers lose no digits.
    shifted, s = q - peak - math.log(rho), torch.full_like(peak, -1 / rho)
    for _ in range(rounds):
        x = wright_omega((shifted - s).clamp(min=-690))
        s = s + (x.sum(1, keepdim=True) - 1 / rho) / (x / (1 + x)).sum(1, keepdim=True)
    x = wright_omega((shifted - s).clamp(min=-690))
    return (q - x).to(centre)
