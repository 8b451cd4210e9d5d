"""How far a network moves its features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .rows import widened

__all__ = ["transport_cost"]


def transport_cost(moves: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over blocks of the mean squared displacement, sum_b mean (out_b - in_b)^2.

    Args:
        moves: what went into a block and what came out, (N, ...) each and of one shape; 0 for no block.

    References:
        S. Karkar, I. Ayed, E. de Bezenac, P. Gallinari, Module-wise Training of Neural Networks via the Minimizing
        Movement Scheme, NeurIPS 2023, https://arxiv.org/abs/2309.17357

    >>> transport_cost([(torch.zeros(2, 3), torch.ones(2, 3)), (torch.ones(2), torch.ones(2))]).item()
    1.0
    """
    costs = [(widened(after) - widened(before)).square().mean() for before, after in moves]
    return torch.stack(costs).sum() if costs else torch.zeros(())
